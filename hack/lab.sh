#!/usr/bin/env bash
# Runs the namespace lab in some modes, and prints one table.
#
#   hack/lab.sh MODE[,MODE...]|all [ARGUMENT OF netweft-lab...]     also fabric (routers), bgp (what BGP has to bear), scale (many nodes)
#
# Modes with a kind of link that this kernel lacks run on another kernel (e2e/other-kernel). With OTHER_KERNEL=1 all do.
# netweft-lab is looked for on PATH (hack/env.sh).
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

all=vxlan,ipip,udp,host-gw,vxlan-cross-subnet,ipip-cross-subnet,udp-cross-subnet,underlay

main() {
  local modes=${1:?usage: hack/lab.sh MODE[,MODE...]|all [ARGUMENT...]} mode code=0
  local here=() ipip=()
  shift
  [[ $modes != all ]] || modes=$all
  for mode in ${modes//,/ }; do
    if [[ $mode == ipip* ]]; then ipip+=("$mode"); else here+=("$mode"); fi
  done
  if [[ ,$modes, =~ ,(underlay|fabric|bgp|scale|migrate), ]]; then
    NETWEFT_BIRD_BIN=$("$project/e2e/cluster/bird.sh")
    export NETWEFT_BIRD_BIN
  fi
  if [[ ,$modes, == *,fabric,* ]]; then
    NETWEFT_ROUTERS=$("$project/e2e/routers/root.sh")
    export NETWEFT_ROUTERS
  fi
  said=$(mktemp)
  trap 'rm -f "$said"' EXIT
  if ((${#here[@]})); then
    labs "${here[*]}" "$@" || code=1
  fi
  if ((${#ipip[@]})); then
    labs "${ipip[*]}" "$@" || code=1
  fi
  if ((${#here[@]} && ${#ipip[@]})); then
    echo
    echo 'all of them:'
    sed -n 's/^lab| //p' "$said"
  fi
  return "$code"
}

labs() { # MODES ARGUMENT...
  local modes=${1// /,} where=()
  shift
  if [[ -n ${OTHER_KERNEL:-} ]]; then
    where=("$project/e2e/other-kernel/run.sh")
  elif [[ $modes == ipip* ]]; then
    where=("$project/e2e/other-kernel/run.sh" --unless ipip)
  fi
  [[ -z ${where[*]} || " $* " != *' --keep '* ]] ||
    die 'KEEP=1 is for labs on this kernel: another one ends with its lab'
  "${where[@]}" netweft-lab --mode "$modes" "$@" 2>&1 | tee -a "$said"
}

main "$@"
