#!/usr/bin/env bash
# Runs tests by tier and prints their sum; the last line is "N passed, N failed, N skipped".
#
#   tests/run.sh test    the first tier (make test): every stage of tests/tiers marked "test"
#   tests/run.sh full    the first tier and the stages marked "full"
#   tests/run.sh soak    only the stages marked "soak"
#   tests/run.sh STAGE   one stage, after setup and build
#
# A stage without a test fails. A skip that tests/skips does not list fails. No test is repeated after a failure.
set -euo pipefail
# shellcheck source=../hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../hack/lib.sh"
# shellcheck source=../e2e/cluster/runs.sh
source "$project/e2e/cluster/runs.sh"
cd "$project"

watchdog_minutes=80
cluster=$project/e2e/cluster/cluster.sh
# cargo hides the output of a passing test, so a skip would not be noticed.
unset NETWEFT_SKIP_NETNS

# ---- stages: each prints its progress and ends with lines that count its tests

stage_setup() {
  need_free_space
  reap_dead_runs
  "$project/e2e/cluster/bird.sh" >/dev/null
  kubernetes_programs >/dev/null
  "$project/e2e/cluster/engine.sh" up
  "$project/e2e/cluster/build-tools.sh" chained cni >/dev/null
}

stage_build() { build_release; }

stage_lint() { hack/lint.sh; }

# All tests of cargo in one run: another selection of packages would select other features of their dependencies and
# compile these again.
stage_rust() {
  # More than there are cores: most tests wait for programs, timers and timeouts.
  export RUST_TEST_THREADS=4
  NETWEFT_KUBE_BIN=$(kubernetes_programs) NETWEFT_CNI_BIN=$("$project/e2e/cluster/build-tools.sh" cni) \
    NETWEFT_BIRD_BIN=$("$project/e2e/cluster/bird.sh") \
    cargo test --release --locked --workspace --no-fail-fast
}

# Every step of the sweeps; the first tier samples them.
stage_sweeps() {
  NETWEFT_KUBE_BIN=$(kubernetes_programs)
  export NETWEFT_KUBE_BIN NETWEFT_SWEEP=all
  cargo test --release --locked --workspace --test kill_at_syscall
  cargo test --release --locked --workspace --test node killed_at_any_request
  cargo test --release --locked --workspace --test api_server killed_after_any_write
}

stage_lab() {
  local code=0 lab=("$BIN_DIR/netweft-lab" --snapshots docs/kernel)
  # Dual stack covers both families; reverse path filters exist for IPv4 only and do not depend on the pod interface.
  "${lab[@]}" --family 46 || code=1
  "${lab[@]}" --family 46 --pod-interface bridge --rp-filter 1 || code=1
  # The other modes differ from the first only between nodes; a strict filter is the hardest case there.
  "${lab[@]}" --mode host-gw,vxlan-cross-subnet --family 46 --rp-filter 1 || code=1
  "${lab[@]}" --mode udp --family 46 --rp-filter 1 || code=1
  "${lab[@]}" --scenario growth --family 46 --rp-filter 1 || code=1
  bgp_programs
  "${lab[@]}" --scenario mode-changes --family 46 --rp-filter 1 || code=1
  "${lab[@]}" --mode underlay --family 46 --rp-filter 1 || code=1
  "${lab[@]}" --scenario abuse --family 46 --rp-filter 0 --seconds 4 || code=1
  "${lab[@]}" --scenario bgp-recoveries,fabric --routers bird || code=1
  return "$code"
}

# The labs that the first tier runs in dual stack, with one family.
stage_lab_families() {
  local code=0 lab=("$BIN_DIR/netweft-lab" --snapshots docs/kernel)
  "${lab[@]}" --family 4,6 || code=1
  "${lab[@]}" --family 4,6 --pod-interface bridge || code=1
  "${lab[@]}" --family 46 --pod-interface bridge --rp-filter 0,2 || code=1
  "${lab[@]}" --mode host-gw,vxlan-cross-subnet,udp,udp-cross-subnet --family 4 --rp-filter 0,2 || code=1
  "${lab[@]}" --mode udp --family 4,6 --rp-filter 1 || code=1
  "${lab[@]}" --mode udp-cross-subnet --family 46 --rp-filter 1 || code=1
  "${lab[@]}" --scenario growth --family 4 --rp-filter 1 || code=1
  bgp_programs
  "${lab[@]}" --mode underlay --family 4,6 --rp-filter 1 || code=1
  return "$code"
}

# Faults of nodes: external changes, killed agents, nodes that join, leave and boot, changed links and addresses; and the clock, on the other
# kernel, where no other program uses it.
stage_lab_endures() {
  local code=0
  "$BIN_DIR/netweft-lab" --scenario drift,agent-failures,reconfiguration --family 46 --rp-filter 1 || code=1
  e2e/other-kernel/run.sh "$BIN_DIR/netweft-lab" --scenario reconfiguration --set-clock --rp-filter 1 --interval 100 ||
    code=1
  return "$code"
}

# Hostile pods and hosts, in every mode.
stage_lab_abuse() {
  local code=0 lab=("$BIN_DIR/netweft-lab" --scenario abuse)
  bgp_programs
  "${lab[@]}" --mode vxlan,udp,host-gw,underlay --family 46 || code=1
  "${lab[@]}" --mode vxlan,udp,host-gw,underlay --family 4,6 --rp-filter 0 || code=1
  "${lab[@]}" --mode vxlan,host-gw --pod-interface bridge --family 4,6,46 --rp-filter 1 || code=1
  return "$code"
}

# Changes from every mode to every other; the first tier has a ring of changes.
stage_lab_migrate() {
  local code=0
  bgp_programs
  "$BIN_DIR/netweft-lab" --scenario mode-changes --tour all --rp-filter 1 || code=1
  "$BIN_DIR/netweft-lab" --scenario mode-changes --family 4,6 --pod-interface bridge --rp-filter 0 || code=1
  e2e/other-kernel/run.sh --unless ipip "$BIN_DIR/netweft-lab" --scenario mode-changes --tour all --rp-filter 1 \
    --interval 50 \
    --mode ipip,vxlan,host-gw,ipip-cross-subnet || code=1
  return "$code"
}

# The slow BGP scenarios.
stage_lab_bgp() {
  local code=0 lab=("$BIN_DIR/netweft-lab" --snapshots docs/kernel)
  bgp_programs
  "${lab[@]}" --mode underlay --family 4,46 --rp-filter 0,2 || code=1
  "${lab[@]}" --mode underlay --family 4,46 --rp-filter 1 --pod-interface bridge || code=1
  "${lab[@]}" --scenario bgp-restarts,bgp-edits,bgp-foreign-peers --family 4,46 || code=1
  "${lab[@]}" --scenario fabric --family 46 --routers frr,bird,gobgp || code=1
  "${lab[@]}" --scenario scale-mesh,scale-reflectors || code=1
  return "$code"
}

bgp_programs() {
  NETWEFT_BIRD_BIN=$("$project/e2e/cluster/bird.sh")
  NETWEFT_ROUTERS=$("$project/e2e/routers/root.sh")
  export NETWEFT_BIRD_BIN NETWEFT_ROUTERS
}

# Modes whose link this kernel may lack; if it has the link, these labs run on this kernel. The other kernel is slow: one filter in the first tier.
stage_lab_other_kernel() { lab_other_kernel --rp-filter 1; }

stage_lab_other_kernel_full() { lab_other_kernel --rp-filter 0,2 && lab_other_kernel --rp-filter 1 --pod-interface bridge; }

lab_other_kernel() { # ARGUMENT...
  e2e/other-kernel/run.sh --unless ipip "$BIN_DIR/netweft-lab" --snapshots "$project/docs/kernel" \
    --mode ipip,ipip-cross-subnet "$@"
}

# If this kernel has no ipip, MODE=ipip adds nodes with another kernel that has it.
stage_kind() {
  local mode=${MODE:-vxlan} checks=${CHECKS:-life} only=()
  if [[ $mode == ipip ]] && ! has_tunnels ipip; then
    mode=vxlan checks=full only=(--only nodes_on_another_kernel)
  fi
  suite "$checks" "${POD_INTERFACE:-routed}" "$mode" "${only[@]}"
}

# The other modes, each in a cluster of its own: the checks of every mode, and those of this mode.
stage_kind_modes() {
  local mode code=0
  for mode in host-gw udp vxlan-cross-subnet underlay; do
    "$cluster" down
    suite basic routed "$mode" || code=1
  done
  return "$code"
}

# Checks that do not depend on the kind of pod run with routed pods, and checks that do not depend on the family with one family.
stage_kind_bridge() { "$cluster" down && FAMILY=46 suite basic bridge; }

stage_kind_families() {
  local code=0
  "$cluster" down
  FAMILY=46 suite basic routed host-gw || code=1
  "$cluster" down
  FAMILY=6 suite basic routed || code=1
  "$cluster" down
  return "$code"
}

stage_kind_full() {
  "$cluster" down
  # The plugins of another network, for the nodes after netweft is uninstalled.
  NETWEFT_CNI_BIN=$("$project/e2e/cluster/build-tools.sh" cni)
  export NETWEFT_CNI_BIN
  suite full routed
}

stage_kind_bridge_full() { "$cluster" down && suite life bridge; }

# Upgrade from the commit before to this one, and downgrade.
stage_kind_upgrade() {
  local old tag bird_tag checkout old_tag old_bird_tag mode code=0
  for mode in vxlan underlay; do
    "$cluster" down
    "$cluster" up
    old=$(e2e/cluster/previous.sh | tail -n 1)
    read -r checkout old_tag old_bird_tag <<<"$old"
    read -r tag bird_tag <<<"$(images_into_cluster | tail -n 1)"
    "$cluster" exec "$BIN_DIR/netweft-e2e" upgrade --project "$project" --tag "$tag" --bird-tag "$bird_tag" --mode "$mode" \
      --old-project "$checkout" --old-tag "$old_tag" --old-bird-tag "$old_bird_tag" || code=1
  done
  return "$code"
}

stage_kind_oldest() {
  "$cluster" down
  KUBERNETES_VERSION=1.34 suite basic routed
  "$cluster" down
}

suite() { # basic|life|full POD_INTERFACE [MODE [ARGUMENT...]], with the IP families of FAMILY: 4, 6, or 46 for both
  local tags tag bird_tag family=${FAMILY:-4} ip
  case $family in
    4) ip=ipv4 ;;
    6) ip=ipv6 ;;
    46) ip=dual ;;
    *) die "FAMILY is '$family'; it can be 4, 6 or 46" ;;
  esac
  export NETWEFT_IP_FAMILY=$ip
  "$cluster" up
  tags=$(images_into_cluster)
  read -r tag bird_tag <<<"$tags"
  "$cluster" exec "$BIN_DIR/netweft-e2e" suite --project "$project" --tag "$tag" --bird-tag "$bird_tag" --checks "$1" \
    --pod-interface "$2" --mode "${3:-vxlan}" --family "$family" "${@:4}"
}

stage_soak_lab() {
  local end=$((SECONDS + 20 * 60)) rounds=0
  while ((SECONDS < end)); do
    "$BIN_DIR/netweft-lab"
    "$BIN_DIR/netweft-lab" --scenario abuse --family 46 --rp-filter 1 --seconds 60
    rounds=$((rounds + 1))
  done
  echo "soak: $rounds rounds"
}

# ---- running stages

stages_of() { # TIER...
  local tier
  for tier in "$@"; do awk -v tier="$tier" '$1 == tier { print $2 }' tests/tiers; done
}

run_stage() { # NAME
  local name=$1 output=$logs/$1 code=0 started=$SECONDS ticker
  echo "=== $name"
  heartbeat_ticker "stage $name" &
  ticker=$!
  set +e
  (set -e; "stage_$name") 2>&1 | tee "$output"
  code=${PIPESTATUS[0]}
  set -e
  kill "$ticker" 2>/dev/null || true
  wait "$ticker" 2>/dev/null || true
  count "$name" "$output" "$code"
  echo "=== $name: $((SECONDS - started)) s"
}

# Adds up the results of the runners: "test result:" lines of cargo and "NAME: N passed, N failed" of the project's own.
count() { # NAME OUTPUT CODE
  local p f s
  read -r p f s < <(awk '
    /^test result: / { p += $4; f += $6; s += $8 }
    /^(lint|lab|kind): [0-9]+ passed, [0-9]+ failed/ { p += $2; f += $4 }
    /^skipped: / { s++ }
    END { print p + 0, f + 0, s + 0 }' "$2")
  if [[ $3 != 0 && $f == 0 ]]; then
    echo "stage $1 failed with exit code $3"
    f=1
  fi
  if [[ $1 != setup && $1 != build && $((p + f)) == 0 ]]; then
    echo "stage $1 ran no test"
    f=1
  fi
  check_skips "$1" "$2" || f=$((f + 1))
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
}

# Every skip must be expected in its stage. (cargo prints "test NAME ... ignored".)
check_skips() { # NAME OUTPUT
  local skip bad=0
  while read -r skip; do
    grep -qxF "$1: $skip" tests/skips || { echo "unexpected skip in stage $1: $skip"; bad=1; }
  done < <(sed -nE 's/^test (.*) \.\.\. ignored.*/\1/p; s/^skipped: (.*)/\1/p' "$2")
  return "$bad"
}

finish() {
  [[ -z $watchdog ]] || kill "$watchdog" 2>/dev/null || true
  "$project/hack/down.sh" >/dev/null 2>&1 || true
  rm -rf "$logs"
  echo "$passed passed, $failed failed, $skipped skipped"
}

# Before the limit of CI ends the run without output: print the processes, and the stages that have not run.
watch_over() { # MAIN_PID
  sleep $((watchdog_minutes * 60)) >/dev/null 2>&1
  echo "watchdog: not done after $watchdog_minutes minutes; stages that have not ended: $(cat "$logs/.left" 2>/dev/null)"
  ps -eo pid,etimes,args --sort=-etimes | tail -n 40
  "$cluster" status 2>&1 | tail -n 40
  kill -TERM "$1"
}

main() {
  local stage stages=()
  case $1 in
    test) mapfile -t stages < <(stages_of test) ;;
    full) mapfile -t stages < <(stages_of test full) ;;
    soak) mapfile -t stages < <(stages_of soak) ;;
    *) mapfile -t stages < <(printf '%s\n' setup build "$1" | awk '!seen[$0]++') ;;
  esac
  # First of all: the requirements of all stages.
  require "${stages[@]/#/stage-}"
  passed=0 failed=0 skipped=0
  logs=$(mktemp -d)
  # Only the first tier has a time limit: CI's.
  watchdog=
  [[ $1 != test ]] || { watch_over $$ & watchdog=$!; }
  trap 'failed=$((failed + 1)); finish; exit 1' TERM INT
  cargo_environment
  export INSTA_UPDATE=no
  for stage in "${stages[@]}"; do
    printf '%s\n' "${stages[@]}" | sed "0,/^$stage\$/!b;//,\$!d" >"$logs/.left"
    run_stage "$stage"
    # Without programs no test can run.
    if [[ $stage == setup || $stage == build ]] && ((failed)); then break; fi
  done
  finish
  ((failed == 0))
}

main "${1:?usage: tests/run.sh test|full|soak|STAGE}"
