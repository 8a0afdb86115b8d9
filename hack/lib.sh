# shellcheck shell=bash
# What the scripts of the project share, on top of e2e/cluster/lib.sh; sourced, never run.
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=../e2e/cluster/lib.sh
source "$project/e2e/cluster/lib.sh"

# Cargo's output lies in the cache, so that a clean checkout compiles only our own crates. One directory for each lock
# file, compiler and set of flags: within one, cargo itself detects what is stale; between them nothing is shared, and the
# two used last are kept.
cargo_environment() {
  require rust-toolchain
  local kind=$NETWEFT_CACHE/cargo target
  target=$kind/$(hash_of "$project/Cargo.lock" "$project/.cargo/config.toml" "$(rustc -vV)" "${RUSTFLAGS:-}")
  if [[ ! -d $target ]]; then
    need_free_space
    mkdir -p "$kind"
    seed_target "$kind" "$target"
    keep_newest_two "$kind"
  fi
  touch "$target"
  forget_other_checkout "$target"
  export CARGO_TARGET_DIR=$target
  BIN_DIR=$target/$(rustc --print host-tuple)/release
  export BIN_DIR
}

# A lock file that differs in one line has the rest in common with the last: what that has compiled is taken over, unless it has
# grown old.
seed_target() { # FOLDER_OF_TARGETS TARGET
  local newest
  newest=$(find "$1" -mindepth 1 -maxdepth 1 -type d -name '[0-9a-f]*' -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-)
  if [[ -n $newest ]] && (($(du -sm "$newest" | cut -f1) < 4096)); then
    cp -a "$newest" "$1/.seed.$$"
  else
    mkdir -p "$1/.seed.$$"
  fi
  mv -T "$1/.seed.$$" "$2"
}

# Cargo takes our crates by their place within the checkout, and for fresh if they are older than what was made: of two checkouts
# that share a directory it would take the one's for the other's.
forget_other_checkout() { # TARGET
  [[ $(cat "$1/.checkout" 2>/dev/null) != "$project" ]] || return 0
  local profile
  profile=$1/$(rustc --print host-tuple)/release
  mkdir -p "$profile"
  # Under cargo's own lock: the other may be building.
  flock "$profile/.cargo-lock" find "$1" -path '*/.fingerprint/netweft-*' -prune -exec rm -rf {} +
  echo "$project" >"$1/.checkout"
}

build_release() {
  (cd "$project" && cargo build --release --locked --workspace --all-targets)
}

# Makes the images of the built programs and puts them into the cluster's nodes. Prints their tag, and that of BIRD's.
images_into_cluster() {
  local programs tags tag bird_tag
  programs=$(mktemp -d)
  cp "$BIN_DIR"/{netweft-operator,netweft-agent,netweft,netweft-udp-relay,netweft-probe} "$programs/"
  tags=$("$project/e2e/cluster/images.sh" "$programs" | tail -n 1)
  read -r tag bird_tag <<<"$tags"
  rm -rf "$programs"
  "$project/e2e/cluster/cluster.sh" load "netweft/operator:$tag" "netweft/agent:$tag" "netweft/udp-relay:$tag" \
    "netweft/testbox:$tag" "netweft/bird:$bird_tag" >&2
  echo "$tags"
}

# etcd, kube-apiserver and helm in one folder, as the tests require.
kubernetes_programs() {
  local directory
  directory=$NETWEFT_CACHE/control-plane
  mkdir -p "$directory"
  local built
  built=$("$project/e2e/cluster/build-tools.sh" kubernetes etcd helm)
  while read -r built; do ln -sf "$built"/* "$directory/"; done <<<"$built"
  echo "$directory"
}
