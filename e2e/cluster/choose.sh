# shellcheck shell=bash
# What the cluster is made with on this machine: node image, programs, gates. A part of cluster.sh, sourced; here and
# NETWEFT_ENGINE* are set. Each choice sets variables that cluster.sh reads.
# shellcheck disable=SC2034,SC2154

# ---- choosing the node image

# Sets node_image and image_source. The private engine has no way out, so it can never pull.
choose_node_image() {
  local published
  published=$(published_node_image "$KUBERNETES_VERSION")
  if [[ -n ${NODE_IMAGE:-} ]]; then
    node_image=$NODE_IMAGE image_source='as NODE_IMAGE says'
  elif [[ $NETWEFT_ENGINE == own ]] && pull "$published"; then
    node_image=$published image_source='published by kind'
  else
    load_built_image
    image_source="built here, Kubernetes $(kubernetes_patch "$KUBERNETES_VERSION")"
  fi
}

pull() { # IMAGE; the quick question first: a machine without a registry must not wait for a slow pull to fail
  docker image inspect "$1" >/dev/null 2>&1 && return
  if timeout 20 docker manifest inspect "$1" >/dev/null 2>&1; then
    with_heartbeat "pull $1" docker pull "$1"
  else
    say "$1 cannot be pulled here, so a node image is built from packages and Go modules"
    return 1
  fi
}

load_built_image() {
  local archive
  archive=$("$here/node-image.sh")
  node_image=netweft/node:$(basename "$(dirname "$archive")") # both are named by the same hash
  if ! docker image inspect "$node_image" >/dev/null 2>&1; then
    with_heartbeat "load $node_image into the engine" docker load -i "$archive"
    forget_old_node_images
  fi
}

forget_old_node_images() { # those whose archive has left the cache
  local name
  docker images netweft/node --format '{{.Repository}}:{{.Tag}}' | while read -r name; do
    compgen -G "$NETWEFT_CACHE/node-image-*/${name#*:}" >/dev/null || docker rmi "$name" >/dev/null 2>&1 || true
  done
}

# ---- choosing the programs

version_of() { # COMMAND... -> MAJOR.MINOR.PATCH in what it prints
  "$@" 2>/dev/null | grep -oE 'v[0-9]+\.[0-9]+\.[0-9]+' | head -n 1 | tr -d v
}

# kubectl supports servers one minor version away.
own_kubectl_fits() {
  local minor
  minor=$(version_of kubectl version --client | cut -d. -f2)
  [[ -n $minor ]] && ((minor >= ${KUBERNETES_VERSION#1.} - 1 && minor <= ${KUBERNETES_VERSION#1.} + 1))
}
own_helm_fits() { at_least "$(version_of helm version)" 3.16.0; }
own_kind_fits() { at_least "$(version_of kind version)" 0.33.0; }

# Sets tools_path to directories for PATH. kubectl comes with the other Kubernetes programs where those were built.
choose_tools() {
  local tool directory
  tools_path='' tools_source=''
  for tool in kubectl helm kind; do
    if [[ $image_source != built* ]] && "own_${tool}_fits"; then
      tools_source+=" $tool=$(command -v "$tool")"
      continue
    fi
    if [[ $tool == kubectl && $image_source == built* ]]; then
      directory=$("$here/build-tools.sh" kubernetes)
    else
      directory=$("$here/build-tools.sh" "$tool")
    fi
    tools_path+=$directory:
    tools_source+=" $tool=built"
  done
}

# ---- what this machine needs a gate for

# Sets gates and fail_cgroup_v1.
choose_gates() {
  gates='' fail_cgroup_v1=''
  # Without CAP_SYS_RESOURCE the kubelet may set neither OOM scores nor some sysctls, as in a user namespace.
  [[ $NETWEFT_ENGINE_CAPS == full ]] || gates='KubeletInUserNamespace: true'
  # From 1.35 on the kubelet refuses cgroup v1 by default.
  if [[ $(docker info -f '{{.CgroupVersion}}') == 1 ]] && ((${KUBERNETES_VERSION#1.} >= 35)); then
    fail_cgroup_v1='failCgroupV1: false'
  fi
}
