#!/usr/bin/env bash
# `make test` as on a new machine: every cache empty, and on PATH only what such a machine has (Debian's essential packages), what
# README.md asks for, and what hack/requirements declares. A command that is used but not declared is not found. Slow (up to an hour).
set -euo pipefail
# shellcheck source=../hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../hack/lib.sh"

# What README.md asks for.
toolchains=(cargo rustc rustdoc rustfmt cargo-fmt cargo-clippy clippy-driver go gofmt docker)

stages() { awk '$1 == "test" { print "stage-" $2 }' "$project/tests/tiers"; }

# Links to the programs of the essential and the declared packages, and of what these depend on, and to the toolchains. In two directories:
# the docker client of the machine and that of the package docker.io can differ, and a machine has both.
link_programs() { # PACKAGES TOOLCHAINS
  local tool path packages essential
  mapfile -t packages < <(stages | xargs "$project/hack/require.sh" --list)
  mapfile -t essential < <(dpkg-query --show --showformat '${Package} ${Essential}\n' | sed -n 's/ yes$//p')
  apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
    make "${packages[@]}" "${essential[@]}" | grep '^[a-z0-9]' | sort -u | { xargs dpkg-query --listfiles 2>/dev/null || true; } |
    grep -E '^(/usr)?/s?bin/[^/]+$' | while read -r path; do ln -sf "$path" "$1/"; done
  # Some package brings awk, an essential command, and none is essential itself.
  ln -sf "$(realpath "$(type -P awk)")" "$1/awk"
  # Names that the alternatives system manages belong to no package.
  find /usr/bin /usr/sbin -lname '/etc/alternatives/*' -printf '%f %p\n' | while read -r tool path; do
    [[ ! -e $1/$(basename "$(realpath "$path")") ]] || ln -sf "$path" "$1/$tool"
  done
  for tool in "${toolchains[@]}"; do
    if path=$(type -P "$tool"); then ln -sf "$path" "$2/$tool"; fi
  done
}

require fresh
mapfile -t names < <(stages)
require "${names[@]}"
work=$(mktemp -d "${TMPDIR:-/var/tmp}/netweft-fresh.XXXXXX")
trap 'NETWEFT_CACHE=$work/cache "$project/hack/down.sh" >/dev/null 2>&1 || true; chmod -R u+w "$work"; rm -rf "$work"' EXIT
mkdir -p "$work/bin" "$work/toolchains"
link_programs "$work/bin" "$work/toolchains"
# The checkout as it is committed: what is only in the work tree does not count.
git clone --quiet "$project" "$work/netweft"
cd "$work/netweft"
env -i HOME="$HOME" PATH="$work/toolchains:$work/bin" CI=true \
  RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}" CARGO_HOME="$work/cargo" NETWEFT_CACHE="$work/cache" \
  GOPROXY="$(go env GOPROXY)" \
  make test
