#!/usr/bin/env bash
# Writes docs/kernel: what a node's kernel looks like in each mode, as the namespace lab finds it.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$project"

said=$(mktemp)
trap 'rm -f "$said"' EXIT
tell=(--rp-filter 1 --snapshots docs/kernel --tell-snapshots)
hack/lab.sh connectivity all -- "${tell[@]}" | tee "$said"
hack/lab.sh connectivity vxlan -- --pod-interface bridge "${tell[@]}" | tee -a "$said"
rm -rf docs/kernel
mkdir -p docs/kernel
while IFS='|' read -r _ name line; do
  printf '%s\n' "$line" >>"docs/kernel/$name"
done < <(grep '^snapshot|' "$said")
