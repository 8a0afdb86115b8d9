#!/usr/bin/env bash
# The simulation of many nodes (operator/tests/api_server/simulation), at a size of one's own; `make sim`.
#
#   hack/sim.sh NODES [SEED]
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
require sim
cargo_environment
cd "$project"
NETWEFT_KUBE_BIN=$(kubernetes_programs)
export NETWEFT_KUBE_BIN
export NETWEFT_SIM_NODES=${1:?usage: hack/sim.sh NODES [SEED]} NETWEFT_SIM_SEED=${2:-1}
export NETWEFT_SIM_JSON=$project/bench/results-sim.json
# All packages, though one is meant: another choice would mean other features, and compiling it all again.
exec cargo test --release --locked --workspace --test api_server -- --nocapture simulation::many_nodes
