#!/usr/bin/env bash
# A three-node kind cluster with netweft on it, and the matrix of who pings whom. The cluster stays; hack/down.sh takes
# it away.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# A machine of root's without docker is one that was made for this: what is missing is installed.
if [[ $(id -u) == 0 && -z ${NETWEFT_INSTALL:-} ]] && ! docker info >/dev/null 2>&1; then
  export NETWEFT_INSTALL=1
fi
cargo_environment
with_heartbeat 'build the programs' build_release
"$project/e2e/cluster/cluster.sh" up
tags=$(images_into_cluster)
read -r tag bird_tag <<<"$tags"
"$project/e2e/cluster/cluster.sh" exec "$BIN_DIR/netweft-e2e" demo --project "$project" --tag "$tag" --bird-tag "$bird_tag"
