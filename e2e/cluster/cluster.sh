#!/usr/bin/env bash
# The test cluster: kind, one control plane and two workers, without a pod network (that is netweft's part).
#
#   cluster.sh up               make it, or use it again if it is alive and healthy; nodes stay NotReady without a CNI
#   cluster.sh exec CMD...      run CMD where the cluster can be reached, with kubectl, helm, kind and docker on PATH
#   cluster.sh env              the shell variables that exec sets; NETWEFT_ENGINE_NETNS must be entered besides
#   cluster.sh load IMAGE...    bring images of the engine to all nodes
#   cluster.sh status           what there is
#   cluster.sh down             take the cluster away, and with the last one the private engine
#
# Variables:
#   NETWEFT_CLUSTER      name (default netweft)
#   KUBERNETES_VERSION   minor version: 1.34, 1.35, 1.36 or 1.37 (default)
#   NODE_IMAGE           node image to use instead of kind's published one or a built one
#   NETWEFT_IP_FAMILY    ipv4 (default), ipv6 or dual
#   NETWEFT_POD_SUBNET   podSubnet of the control plane (default 10.244.0.0/16, fd00:10:244::/56)
#   NETWEFT_WORKERS      number of workers (default 2)
#   NETWEFT_CACHE, NETWEFT_INSTALL   see lib.sh and requirements.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
source "$here/lib.sh"
# shellcheck source=versions.sh
source "$here/versions.sh"
# shellcheck source=choose.sh
source "$here/choose.sh"

cluster=${NETWEFT_CLUSTER:-netweft}
state=$NETWEFT_CACHE/clusters/$cluster # kubeconfig, env; made by up, removed by down

enter_engine() { # sets the engine's variables in this shell
  local variables
  variables=$("$here/engine.sh" env)
  eval "$variables"
}

in_engine_netns() { # CMD...
  if [[ -n ${NETWEFT_ENGINE_NETNS:-} ]]; then
    nsenter --net="/run/netns/$NETWEFT_ENGINE_NETNS" -- "$@"
  else
    "$@"
  fi
}

nodes() { docker ps -aq --filter "label=io.x-k8s.kind.cluster=$cluster" --format '{{.Names}}' | sort; }

# ---- configuration of kind

kind_config() {
  local family=${NETWEFT_IP_FAMILY:-ipv4} subnet worker
  case $family in
    ipv4) subnet=10.244.0.0/16 ;;
    ipv6) subnet=fd00:10:244::/56 ;;
    dual) subnet=10.244.0.0/16,fd00:10:244::/56 ;;
    *) die "NETWEFT_IP_FAMILY is '$family'; it can be ipv4, ipv6 or dual" ;;
  esac
  cat <<CONFIG
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
featureGates: {$gates}
networking:
  ipFamily: $family
  disableDefaultCNI: true
  kubeProxyMode: nftables
  podSubnet: ${NETWEFT_POD_SUBNET:-$subnet}
kubeadmConfigPatches:
# Pools need not lie inside podSubnet: kube-proxy detects local pods by the name of their interface on the node.
- |
  kind: KubeProxyConfiguration
  detectLocalMode: InterfaceNamePrefix
  detectLocal: {interfaceNamePrefix: nw}
- |
  kind: KubeletConfiguration
  metadata: {name: config}
  $fail_cgroup_v1
nodes:
- role: control-plane
CONFIG
  for ((worker = 0; worker < ${NETWEFT_WORKERS:-2}; worker++)); do
    echo '- role: worker'
  done
}

# ---- the commands

up() {
  local lock
  mkdir -p "$state"
  exec {lock}>"$state/lock"
  flock -n "$lock" || with_heartbeat "wait for another cluster.sh up" flock "$lock"
  "$here/engine.sh" up
  enter_engine
  choose_node_image
  choose_gates
  choose_tools
  PATH=$tools_path$PATH
  say "engine: $NETWEFT_ENGINE${NETWEFT_ENGINE_NETNS:+ (in $NETWEFT_ENGINE_NETNS)} | node image: $node_image ($image_source)" \
    "| gates: ${gates:-none}${fail_cgroup_v1:+, $fail_cgroup_v1} | tools:$tools_source"
  write_env
  if is_healthy; then
    say "the cluster $cluster is up already"
    return
  fi
  create
}

write_env() {
  {
    "$here/engine.sh" env
    printf 'export KUBECONFIG=%q NETWEFT_CLUSTER=%q KUBERNETES_VERSION=%q\n' \
      "$state/kubeconfig" "$cluster" "$KUBERNETES_VERSION"
    # shellcheck disable=SC2016 # the shell that reads this file expands PATH
    printf 'export PATH=%q:"$PATH"\n' "${tools_path%:}"
  } >"$state/env.new"
  mv "$state/env.new" "$state/env"
}

config_hash() { hash_of "$(kind_config)" "$node_image"; }

is_healthy() { # the same image and settings, all nodes run, the API server says that it is ready
  local running
  [[ -s $state/kubeconfig && $(cat "$state/config" 2>/dev/null) == "$(config_hash)" ]] || return 1
  running=$(docker ps -q --filter "label=io.x-k8s.kind.cluster=$cluster" | wc -l)
  ((running == ${NETWEFT_WORKERS:-2} + 1)) || return 1
  in_engine_netns timeout 15 kubectl --kubeconfig "$state/kubeconfig" get --raw /readyz >/dev/null 2>&1
}

create() {
  rm -f "$state/config" "$state/kubeconfig"
  remove_nodes
  kind_config >"$state/kind.yaml"
  with_heartbeat "create the cluster $cluster" \
    in_engine_netns kind create cluster --name "$cluster" --image "$node_image" --config "$state/kind.yaml" \
    --kubeconfig "$state/kubeconfig" --retain
  config_hash >"$state/config"
}

remove_nodes() {
  local names=()
  mapfile -t names < <(nodes)
  ((${#names[@]} == 0)) || with_heartbeat "remove the nodes ${names[*]}" docker rm -fv "${names[@]}"
}

read_env() {
  [[ -s $state/env && -s $state/kubeconfig ]] || die "there is no cluster $cluster; make it with cluster.sh up"
  # shellcheck source=/dev/null
  source "$state/env"
}

down() {
  "$here/other-kernel.sh" down
  if "$here/engine.sh" env >/dev/null 2>&1; then
    enter_engine
    remove_nodes
  fi
  rm -rf "$state"
  # Another cluster may live in the same engine.
  [[ -n $(docker ps -aq --filter label=io.x-k8s.kind.cluster 2>/dev/null) ]] || "$here/engine.sh" down
}

status() {
  read_env
  echo "engine: $NETWEFT_ENGINE ${NETWEFT_ENGINE_NETNS}"
  docker ps -a --filter "label=io.x-k8s.kind.cluster=$cluster" --format '{{.Names}}\t{{.Status}}\t{{.Image}}'
  in_engine_netns kubectl get nodes -o wide
}

case ${1:-} in
  up) up ;;
  down) down ;;
  status) status ;;
  env) read_env && cat "$state/env" ;;
  exec)
    shift
    (($#)) || die "say what to run: cluster.sh exec kubectl get nodes"
    read_env
    in_engine_netns "$@"
    ;;
  load)
    shift
    read_env
    "$here/load-images.sh" "$@"
    ;;
  -h | --help) usage ;;
  *) usage; exit 1 ;;
esac
