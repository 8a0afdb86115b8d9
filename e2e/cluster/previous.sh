#!/usr/bin/env bash
# What the nodes of a user who has not upgraded yet run: builds the programs of the commit before, and makes its images.
#
#   previous.sh            prints the folder of that commit's checkout, the tag of its images and that of its BIRD
#
# That is the commit before the last one that changed a program or the chart, or before the work tree where it differs from that;
# NETWEFT_PREVIOUS names another. What was built is kept in the cache.
set -euo pipefail
# shellcheck source=../../hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../hack/lib.sh"

parts=(Cargo.toml Cargo.lock charts client cni common crds netstate node-agent operator telemetry udp-relay)
programs=(netweft-operator netweft-agent netweft netweft-udp-relay netweft-probe)

previous_commit() {
  if [[ -n ${NETWEFT_PREVIOUS:-} ]]; then
    git -C "$project" rev-parse --verify "$NETWEFT_PREVIOUS^{commit}"
  elif ! git -C "$project" diff --quiet HEAD -- "${parts[@]}"; then
    git -C "$project" rev-parse HEAD
  else
    git -C "$project" rev-parse "$(git -C "$project" log -1 --format=%H -- "${parts[@]}")^"
  fi
}

build_previous() { # ENTRY_DIR
  local program
  git clone --quiet --no-checkout "$project" "$1/checkout"
  git -C "$1/checkout" checkout --quiet --detach "$commit"
  cargo_environment
  cp -a "$CARGO_TARGET_DIR" "$1/target"
  (
    cd "$1/checkout"
    CARGO_TARGET_DIR=$1/target with_heartbeat "build the programs of ${commit:0:12}" cargo build --release --locked --workspace --bins
  )
  mkdir "$1/programs"
  for program in "${programs[@]}"; do
    cp "$1/target/$(rustc --print host-tuple)/release/$program" "$1/programs/"
  done
  rm -rf "$1/target"
}

(($# == 0)) || { usage; exit 1; }
commit=$(previous_commit)
entry=$(cache_entry previous "$(hash_of "$commit" "$(rustc -vV)")" build_previous)
tags=$("$entry/checkout/e2e/cluster/images.sh" "$entry/programs" | tail -n 1)
read -r tag bird_tag <<<"$tags"
"$project/e2e/cluster/cluster.sh" load "netweft/operator:$tag" "netweft/agent:$tag" "netweft/udp-relay:$tag" \
  "netweft/bird:$bird_tag" >&2
echo "$entry/checkout $tag $bird_tag"
