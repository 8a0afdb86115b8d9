#!/usr/bin/env bash
# Make the image of a router that is no node, Debian's FRR (e2e/routers), in the engine of DOCKER_HOST:
#
#   router-image.sh     prints its name; run it by `cluster.sh exec`
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
source "$here/lib.sh"
# shellcheck source=archive.sh
source "$here/archive.sh"

load_image() {
  local work
  work=$(scratch)
  mkdir "$work/archive"
  archive_add "$work/archive" "$image" "$root" '{"Env": ["PATH=/usr/lib/frr:/usr/sbin:/usr/bin:/sbin:/bin"]}'
  archive_finish "$work/archive" "$work/image.tar"
  docker load -i "$work/image.tar"
  rm -rf "$work"
}

case ${1:-} in -h | --help) usage; exit ;; esac
root=$("$here/../routers/root.sh")
image=netweft/router:$(basename "$(dirname "$root")")
docker image inspect "$image" >/dev/null 2>&1 || with_heartbeat "load the image $image" load_image
echo "$image"
