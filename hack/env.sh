#!/usr/bin/env bash
# Runs a command with the project's environment: cargo's directory in the cache, the built programs first on PATH.
#
#   hack/env.sh CMD...
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cargo_environment
cd "$project"
PATH=$BIN_DIR:$PATH exec "$@"
