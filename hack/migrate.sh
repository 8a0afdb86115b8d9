#!/usr/bin/env bash
# Changes the mode of a namespace lab from every one to every other, under load, and prints what each change cost.
#
#   hack/migrate.sh [ARGUMENT OF netweft-lab...]
#
# Where this kernel has no ipip, the modes that need it change to and from the others on another kernel (e2e/other-kernel).
# netweft-lab is looked for on PATH (hack/env.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

code=0
./lab.sh mode-changes -- --tour all "$@" || code=1
if [[ " $* " == *' --family 4 '* ]]; then
  ./lab.sh mode-changes ipip,vxlan,host-gw,ipip-cross-subnet -- --tour all --interval 50 "$@" || code=1
fi
exit "$code"
