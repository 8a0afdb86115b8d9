#!/usr/bin/env bash
# Make netweft's own images from programs that are built already, by the final stages of the Dockerfile:
#
#   images.sh BIN_DIR     BIN_DIR holds static builds of netweft-operator, netweft-agent, netweft, netweft-udp-relay
#                         and netweft-probe
#
# The images are netweft/operator:TAG, netweft/agent:TAG, netweft/udp-relay:TAG, netweft/testbox:TAG and netweft/bird:BIRD_TAG
# in the engine that engine.sh chose. TAG is a hash of all that went in, and BIRD_TAG one of BIRD and its image alone: no
# change of netweft changes it. The last line on stdout is "TAG BIRD_TAG". What exists is not made again.
#
# The programs come as an image of their own. Where no registry is reached, so do the bases of the final stages, made from
# Debian packages: the final stages only copy, so nothing is pulled and nothing is run.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
source "$here/lib.sh"
# shellcheck source=versions.sh
source "$here/versions.sh"
# shellcheck source=archive.sh
source "$here/archive.sh"

programs=(netweft-operator netweft-agent netweft netweft-udp-relay netweft-probe)

# ---- the bases: what the Dockerfile's stages "…-base" make where packages can be installed

agent_base_packages=nftables

make_agent_base() { # ARCHIVE_DIR
  debian_root "$1.agent" extract "$agent_base_packages"
  mkdir -p "$1.agent/opt"
  cp -a "$("$here/bird.sh" --alone)" "$1.agent/opt/bird"
  archive_add "$1" "netweft/agent-base:$bases_hash" "$1.agent" '{"Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin"]}'
  rm -rf "$1.agent"
}

make_testbox_base() { # ARCHIVE_DIR
  local root=$1.testbox applet
  debian_root "$1.busybox" extract busybox-static
  mkdir -p "$root/bin" "$root/tmp" "$root/etc"
  chmod 1777 "$root/tmp"
  cp "$(realpath "$1.busybox/bin/busybox")" "$root/bin/"
  for applet in $("$root/bin/busybox" --list); do
    [[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
  done
  archive_add "$1" "netweft/testbox-base:$bases_hash" "$root" '{"Env": ["PATH=/bin"]}'
  rm -rf "$root" "$1.busybox"
}

make_bird_base() { # ARCHIVE_DIR
  archive_add "$1" "netweft/bird-base:$bird_tag" "$("$here/bird.sh" --root)" '{"Env": ["PATH=/usr/sbin:/usr/bin"]}'
}

build_bases() { # ENTRY_DIR
  mkdir "$1/archive"
  with_heartbeat 'make the base of the agent image' make_agent_base "$1/archive"
  with_heartbeat 'make the base of the testbox image' make_testbox_base "$1/archive"
  archive_finish "$1/archive" "$1/images.tar"
}

# Sets bases to registry or packages, bases_hash and bird_tag.
choose_bases() {
  local image bird=registry
  image=$(sed -n 's/^ARG DEBIAN_IMAGE=//p' "$repo_dir/Dockerfile")
  if [[ $NETWEFT_ENGINE == own ]] && can_have "$image"; then
    bases=registry bases_hash=registry
  else
    bases=packages
    bird=$(basename "$(dirname "$("$here/bird.sh" --root)")") # the hash that names its cache entry
    bases_hash=$(hash_of "$(declare -f make_agent_base make_testbox_base)" "$agent_base_packages" "$bird" "$here/archive.sh" \
      "$DEBIAN_RELEASE")
  fi
  bird_tag=$(hash_of "$bird" "$(declare -f make_bird_base)" "$(lines_about_bird)")
}

lines_about_bird() { # of the Dockerfile: those of its stages, and what it takes from elsewhere
  sed -n '/^ARG BIRD_/p; / AS bird\(-base\)\?$/,/^$/p' "$repo_dir/Dockerfile"
}

can_have() { has_image "$1" || timeout 20 docker manifest inspect "$1" >/dev/null 2>&1; }

load_bird_base() {
  local work
  [[ $bases == packages ]] && ! has_image "netweft/bird-base:$bird_tag" || return 0
  work=$(scratch)
  mkdir "$work/archive"
  make_bird_base "$work/archive"
  archive_finish "$work/archive" "$work/image.tar"
  docker load -q -i "$work/image.tar" >&2
  rm -rf "$work"
  forget_old netweft/bird-base "$bird_tag"
}

load_bases() {
  local entry
  [[ $bases == packages ]] || return 0
  require image-archives
  entry=$(cache_entry image-bases "$bases_hash" build_bases)
  if ! has_image "netweft/agent-base:$bases_hash" || ! has_image "netweft/testbox-base:$bases_hash"; then
    docker load -q -i "$entry/images.tar" >&2
  fi
  docker images --format '{{.Repository}}:{{.Tag}}' | grep -E '^netweft/(agent|testbox)-base:' | while read -r entry; do
    [[ -d $NETWEFT_CACHE/image-bases/${entry#*:} ]] || docker rmi "$entry" >/dev/null 2>&1 || true
  done
}

# ---- the programs and the images

has_image() { docker image inspect "$1" >/dev/null 2>&1; }

import_programs() { # as an image with nothing else in it
  local root
  root=$(scratch)
  install -m 755 "${programs[@]/#/$bin_dir/}" "$chained"/netweft-* "$root/"
  tar -C "$root" --owner=0 --group=0 -c . | docker import - "netweft/binaries:$tag" >/dev/null
  rm -rf "$root"
}

# BuildKit leaves out the stages that a target does not need, so the compilers' images are not asked for; and an empty
# context will do, because the final stages copy from other images only.
build_image() { # TARGET TAG
  local context arguments=(--build-arg "BINARIES=netweft/binaries:$tag")
  if [[ $bases != registry ]]; then
    arguments+=(--build-arg "AGENT_BASE=netweft/agent-base:$bases_hash" --build-arg "TESTBOX_BASE=netweft/testbox-base:$bases_hash"
      --build-arg "BIRD_BASE=netweft/bird-base:$bird_tag")
  fi
  context=$(scratch)
  DOCKER_BUILDKIT=1 docker build --target "$1" --tag "netweft/$1:$2" --file "$repo_dir/Dockerfile" \
    "${arguments[@]}" "$context"
  rmdir "$context"
}

# Removes old tags of netweft. TAG and the newest other one stay, because an upgrade test needs a previous image. TAG need not be
# the newest: an image whose content was built before keeps the date of that build.
forget_old() { # REPOSITORY TAG
  docker images "$1" --format '{{.Tag}}' | grep -xE '[0-9a-f]{12}' | sed "/^$2\$/d" | tail -n +2 |
    while read -r old; do docker rmi "$1:$old" >/dev/null 2>&1 || true; done
}

case ${1:-} in -h | --help | '') usage; exit ;; esac
bin_dir=$(realpath "$1")
for program in "${programs[@]}"; do
  [[ -x $bin_dir/$program ]] || die "$bin_dir/$program is missing: build the Rust programs first"
done
chained=$("$here/build-tools.sh" chained)
engine_variables=$("$here/engine.sh" env)
eval "$engine_variables"
choose_bases
tag=$(hash_of "${programs[@]/#/$bin_dir/}" "$chained"/netweft-* "$repo_dir/Dockerfile" "$bases_hash")
for image in operator agent udp-relay testbox; do
  has_image "netweft/$image:$tag" && continue
  load_bases
  has_image "netweft/binaries:$tag" || import_programs
  with_heartbeat "build the image netweft/$image:$tag" build_image "$image" "$tag"
  forget_old "netweft/$image" "$tag"
done
docker rmi "netweft/binaries:$tag" >/dev/null 2>&1 || true
if ! has_image "netweft/bird:$bird_tag"; then
  with_heartbeat 'load the base of the BIRD image' load_bird_base
  with_heartbeat "build the image netweft/bird:$bird_tag" build_image bird "$bird_tag"
  forget_old netweft/bird "$bird_tag"
fi
echo "$tag $bird_tag"
