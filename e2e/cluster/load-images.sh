#!/usr/bin/env bash
# Bring images of the engine to all nodes of the cluster, to all at the same time:
#
#   load-images.sh IMAGE...      run by `cluster.sh load`, which sets DOCKER_HOST and NETWEFT_CLUSTER
#
# A node that has an image already is left out, so a second call costs nothing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
source "$here/lib.sh"

node_images() { # NODE -> lines "NAME DIGEST" of its containerd; an image is known by name and as sha256:ID too
  docker exec "$1" ctr -n k8s.io images ls 2>/dev/null | awk 'NR > 1 { print $1, $3 }'
}

full_name() { # IMAGE -> as containerd names it
  case $1 in
    *.*/*) echo "$1" ;;
    */*) echo "docker.io/$1" ;;
    *) echo "docker.io/library/$1" ;;
  esac
}

has_image() { # LISTING NAME ID: the name must point to the very image
  awk -v name="$2" -v id="$3" '$1 == name { by_name = $2 } $1 == id { by_id = $2 }
    END { exit !(by_name != "" && by_name == by_id) }' <<<"$1"
}

missing_on() { # NODE IMAGE... -> those that it lacks
  local node=$1 listing image
  shift
  listing=$(node_images "$node")
  for image in "$@"; do
    has_image "$listing" "$(full_name "$image")" "${ids[$image]}" || echo "$image"
  done
}

import() { # NODE; --local reads the stream as it comes, and unpacking at once saves the first pod the wait
  docker exec -i "$1" ctr -n k8s.io images import --local --snapshotter overlayfs - <"$archive"
}

import_everywhere() { # NODE...
  local node pids=() pid failed=0
  for node in "$@"; do
    import "$node" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || failed=1
  done
  return "$failed"
}

case ${1:-} in -h | --help | '') usage; exit ;; esac
declare -A ids=() wanted=()
for image in "$@"; do
  [[ $image == *:* ]] || die "say which tag of $image"
  ids[$image]=$(docker image inspect -f '{{.Id}}' "$image" 2>/dev/null) || die "the engine has no image $image"
done
targets=()
while read -r node; do
  lacking=$(missing_on "$node" "$@")
  [[ -n $lacking ]] || continue
  targets+=("$node")
  for image in $lacking; do wanted[$image]=1; done
done < <(docker ps --filter "label=io.x-k8s.kind.cluster=$NETWEFT_CLUSTER" --format '{{.Names}}' | sort)
if ((${#targets[@]} == 0)); then
  say "all nodes have: $*"
  exit
fi
archive=$(scratch)/images.tar
trap 'rm -rf "${archive%/*}"' EXIT
docker save -o "$archive" "${!wanted[@]}"
with_heartbeat "load ${!wanted[*]} into ${targets[*]}" import_everywhere "${targets[@]}"
