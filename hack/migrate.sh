#!/usr/bin/env bash
# Changes the mode of a namespace lab from every one to every other, under load, and prints what each change cost.
#
#   hack/migrate.sh [ARGUMENT OF netweft-lab...]
#
# Where this kernel has no ipip, the modes that need it change to and from the others on another kernel (e2e/other-kernel).
# netweft-lab is looked for on PATH (hack/env.sh).
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

here=vxlan,udp,host-gw,vxlan-cross-subnet,underlay,udp-cross-subnet
there=ipip,vxlan,host-gw,ipip-cross-subnet

NETWEFT_BIRD_BIN=$("$project/e2e/cluster/bird.sh")
export NETWEFT_BIRD_BIN
code=0
netweft-lab --mode migrate --tour all --between "$here" "$@" || code=1
if [[ " $* " == *' --family 4 '* ]]; then
  "$project/e2e/other-kernel/run.sh" --unless ipip netweft-lab --mode migrate --tour all --between "$there" --interval 50 "$@" || code=1
fi
exit "$code"
