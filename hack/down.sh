#!/usr/bin/env bash
# Takes the cluster, the private engine and the lab away. Caches stay.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=../e2e/cluster/runs.sh
source "$project/e2e/cluster/runs.sh"
"$project/e2e/cluster/cluster.sh" down
reap_dead_runs
