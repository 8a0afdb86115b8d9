#!/usr/bin/env bash
# Runs scenarios of the namespace lab in some modes, and prints one table.
#
#   hack/lab.sh SCENARIO[,SCENARIO...] [MODE[,MODE...]|all] [-- ARGUMENT OF netweft-lab...]
#
# Without modes each scenario runs in its default mode. Modes with a kind of link that this kernel lacks run on another kernel
# (e2e/other-kernel). With OTHER_KERNEL=1 all do. netweft-lab is looked for on PATH (hack/env.sh).
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

all=vxlan,ipip,udp,host-gw,vxlan-cross-subnet,ipip-cross-subnet,udp-cross-subnet,underlay

main() {
  local scenarios=${1:?usage: hack/lab.sh SCENARIO[,SCENARIO...] [MODE[,MODE...]|all] [-- ARGUMENT...]} modes='' mode code=0
  local here=() ipip=()
  shift
  if (($#)) && [[ $1 != -- ]]; then modes=$1 && shift; fi
  [[ ${1:-} != -- ]] || shift
  [[ $modes != all ]] || modes=$all
  for mode in ${modes//,/ }; do
    if [[ $mode == ipip* ]]; then ipip+=("$mode"); else here+=("$mode"); fi
  done
  # One lab changes between all of its modes.
  if [[ $scenarios == mode-changes && ${#ipip[@]} -gt 0 ]]; then
    ipip=("${modes//,/ }") here=()
  fi
  if [[ ,$scenarios, =~ ,(fabric|bgp-|scale-|mode-changes) || ,$modes, == *,underlay,* ]]; then
    NETWEFT_BIRD_BIN=$("$project/e2e/cluster/bird.sh")
    export NETWEFT_BIRD_BIN
  fi
  if [[ ,$scenarios, == *,fabric,* ]]; then
    NETWEFT_ROUTERS=$("$project/e2e/routers/root.sh")
    export NETWEFT_ROUTERS
  fi
  said=$(mktemp)
  trap 'rm -f "$said"' EXIT
  if ((${#here[@]} || !${#ipip[@]})); then
    labs "$scenarios" "${here[*]}" "$@" || code=1
  fi
  if ((${#ipip[@]})); then
    labs "$scenarios" "${ipip[*]}" "$@" || code=1
  fi
  if ((${#here[@]} && ${#ipip[@]})); then
    echo
    echo 'all of them:'
    sed -n 's/^lab| //p' "$said"
  fi
  return "$code"
}

labs() { # SCENARIOS MODES ARGUMENT...
  local scenarios=$1 modes=${2// /,} where=()
  shift 2
  if [[ -n ${OTHER_KERNEL:-} ]]; then
    where=("$project/e2e/other-kernel/run.sh")
  elif [[ $modes == *ipip* ]]; then
    where=("$project/e2e/other-kernel/run.sh" --unless ipip)
  fi
  [[ -z ${where[*]} || " $* " != *' --keep '* ]] ||
    die 'KEEP=1 is for labs on this kernel: another one ends with its lab'
  "${where[@]}" netweft-lab --scenario "$scenarios" ${modes:+--mode "$modes"} "$@" 2>&1 | tee -a "$said"
}

main "$@"
