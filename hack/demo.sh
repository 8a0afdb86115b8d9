#!/usr/bin/env bash
# A three-node kind cluster with netweft on it, and the ping matrix of pods and nodes. The cluster stays; hack/down.sh takes
# it away.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

require demo
cargo_environment
with_heartbeat 'build the programs' build_release
"$project/e2e/cluster/cluster.sh" up
tags=$(images_into_cluster)
read -r tag bird_tag <<<"$tags"
"$project/e2e/cluster/cluster.sh" exec "$BIN_DIR/netweft-e2e" demo --project "$project" --tag "$tag" --bird-tag "$bird_tag"
