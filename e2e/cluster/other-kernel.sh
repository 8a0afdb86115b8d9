#!/usr/bin/env bash
# Workers of the test cluster on another kernel: machines of user-mode Linux (Debian's, which has links of the kind ipip)
# on kind's network, each with containerd, a kubelet and the cluster's own kube-proxy.
#
#   other-kernel.sh up IMAGE...   two workers, other-1 and other-2, anew, with these images of the engine; they carry the
#                                 label netweft-e2e/kernel=other. Returns when their Nodes exist; they are NotReady until a CNI
#                                 plugin is there
#   other-kernel.sh down          end them; their Nodes stay, as those of any machine that is switched off
#
# Run it through `cluster.sh exec`, which says where cluster and engine are. cluster.sh down ends them too.
#
# The root of each worker is the file system of the kind node, as a cached disk image; each worker writes to a separate
# copy-on-write file. Container images are unpacked on another disk before the start: inside a worker it takes minutes.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
source "$here/lib.sh"
# shellcheck source=../other-kernel/uml.sh
source "$here/../other-kernel/uml.sh"

names=(other-1 other-2)
cluster=${NETWEFT_CLUSTER:-netweft}
run=other-nodes-$cluster
model=$cluster-worker # the kind node that they resemble
kernel_modules=/usr/lib/uml/modules

# ---- disks

export_root() { # DIR: the model's file system, without what lies in volumes
  local container
  container=$(docker create "$(docker inspect --format '{{.Image}}' "$model")")
  docker export "$container" | tar -x -C "$1" --exclude=var/lib/containerd
  docker rm -fv "$container" >/dev/null
}

make_root_disk() { # ENTRY_DIR
  local root=$1/root
  mkdir "$root"
  export_root "$root"
  mkdir -p "$root/lib/modules" "$root/var/lib/containerd" "$root/machine"
  cp -r "$kernel_modules"/* "$root/lib/modules/"
  install -m 755 "$here/other-kernel/first.sh" "$root/first.sh"
  mkfs.ext4 -q -O ^has_journal -d "$root" "$1/root.ext4" 4G
  rm -rf "$root"
}

# kube-proxy and pause, which the model has, and the images of the caller.
make_image_disk() { # FILE IMAGE...
  local disk=$1 store
  shift
  store=$(scratch)/store
  mkdir "$store"
  docker save "$@" | docker exec -i "$model" bash -c "$(cat "$here/other-kernel/store.sh")" | tar -x -C "$store" --xattrs --xattrs-include='*'
  mkfs.ext4 -q -O ^has_journal -d "$store" "$disk" 4G
  rm -rf "${store%/*}"
}

# ---- network

kind_network() { # FORMAT
  docker network inspect kind --format "$1"
}

bridge() { # a network that was not given a name for its bridge has it by its ID
  local name
  name=$(kind_network '{{index .Options "com.docker.network.bridge.name"}}')
  [[ -n $name ]] && echo "$name" || echo "br-$(kind_network '{{.Id}}' | cut -c1-12)"
}

# docker hands addresses out from the lower end; these are of the upper.
address_of() { # NUMBER
  local subnet
  subnet=$(kind_network '{{range .IPAM.Config}}{{.Subnet}} {{end}}' | tr ' ' '\n' | grep -F . | head -n 1)
  [[ $subnet == *.0.0/16 ]] || die "kind's network is $subnet, and this expects a /16"
  echo "${subnet%.0.0/16}.255.$1"
}

make_tap() { # NAME
  # In a private engine's namespace it goes with that.
  [[ -n ${NETWEFT_ENGINE_NETNS:-} ]] || run_log link "$1"
  ! ip link show dev "$1" >/dev/null 2>&1 || ip link delete dev "$1"
  ip tuntap add dev "$1" mode tap
  ip link set dev "$1" master "$(bridge)" up
}

# ---- what a machine needs to know

write_machine() { # NUMBER NAME DIR
  local control=$cluster-control-plane address
  address=$(docker inspect --format '{{.NetworkSettings.Networks.kind.IPAddress}}' "$control")
  mkdir -p "$3"
  cp "$here/other-kernel/node.sh" "$3/"
  printf 'name=%q\naddress=%q\n' "$2" "$(address_of "$1")/16" >"$3/settings"
  printf '127.0.0.1 localhost\n%s %s\n%s %s\n' "$address" "$control" "$(address_of "$1")" "$2" >"$3/hosts"
  docker exec "$control" kubeadm kubeconfig user --client-name "system:node:$2" --org system:nodes \
    2>/dev/null >"$3/kubeconfig"
  docker exec "$control" cat /etc/kubernetes/pki/ca.crt >"$3/ca.crt"
  # These machines have no systemd, and a cgroup hierarchy of their own.
  docker exec "$model" cat /var/lib/kubelet/config.yaml |
    sed 's/^cgroupDriver: .*/cgroupDriver: cgroupfs/; s/^cgroupRoot: .*/cgroupRoot: \//' >"$3/kubelet.yaml"
}

boot() { # NAME DIR ROOT_DISK IMAGE_DISK TAP, with the caller's library
  local outer inner tries
  setsid unshare --mount --pid --fork --kill-child=KILL --mount-proc \
    env "LD_PRELOAD=$library" linux.uml mem=2G root=/dev/ubda rw init=/first.sh "NETWEFT_MACHINE=$2" panic=-1 noreboot \
    "ubd0=$2/root.cow,$3" "ubd1=$2/images.cow,$4" "vec0:transport=tap,ifname=$5,depth=128,gro=1" \
    con=null con0=null,fd:1 "uml_dir=$2/" umid=kernel </dev/null >"$2/console" 2>&1 &
  outer=$!
  run_log process "$outer" "$(process_start_time "$outer")"
  # Logged last, so it gets the signal first: unshare itself ignores the signal.
  for ((tries = 0; tries < 100; tries++)); do
    inner=$(cat "/proc/$outer/task/$outer/children" 2>/dev/null) || die "$1 ended at once; see $2/console"
    if [[ -n $inner ]]; then break; fi
    sleep 0.1
  done
  run_log process "${inner// /}" "$(process_start_time "${inner// /}")"
}

# ---- kube-proxy

# That kernel's nf_tables has neither of the families that kube-proxy's mode nftables and iptables-nft need.
# So its nodes have a kube-proxy of their own: mode iptables, by the legacy iptables of the node's own file system.
legacy_daemonset='
  .metadata = {name: "kube-proxy-other", namespace: "kube-system"} | del(.status)
  | .spec.selector.matchLabels = {"k8s-app": "kube-proxy-other"}
  | .spec.template |= (.metadata.labels = {"k8s-app": "kube-proxy-other"}
    | .spec |= (.nodeSelector = {"netweft-e2e/kernel": "other"} | del(.affinity)
      | (.volumes[] | select(.name == "kube-proxy").configMap.name) = "kube-proxy-other"
      | .volumes += [{name: "legacy", hostPath: {path: "/usr/sbin/xtables-legacy-multi", type: "File"}}]
      | .containers[0].volumeMounts += [{name: "legacy", mountPath: "/usr/sbin/xtables-nft-multi", readOnly: true}]))'
legacy_configuration='.metadata = {name: "kube-proxy-other", namespace: "kube-system"}
  | .data["config.conf"] |= sub("\nmode: nftables"; "\nmode: iptables")'
stay_away='{"spec": {"template": {"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
  {"nodeSelectorTerms": [{"matchExpressions": [{"key": "netweft-e2e/kernel", "operator": "DoesNotExist"}]}]}}}}}}}'

provide_kube_proxy() {
  local system='kubectl --namespace kube-system'
  $system get configmap kube-proxy -o json | jq "$legacy_configuration" | $system apply -f - >&2
  $system get daemonset kube-proxy -o json | jq "$legacy_daemonset" | $system apply -f - >&2
  $system patch daemonset kube-proxy --type merge -p "$stay_away" >&2
}

# ---- the commands

up() { # IMAGE...
  local disks images number=0 name library
  (($#)) || die 'say which images the workers are to have'
  require other-kernel-nodes
  library=$(uml_library)
  disks=$(cache_entry other-kernel-root "$(hash_of "$(docker inspect --format '{{.Image}}' "$model")" \
    "$(declare -f export_root make_root_disk)" "$here/other-kernel/first.sh" "$(ls "$kernel_modules")")" make_root_disk)
  down
  provide_kube_proxy
  run_begin "$run"
  images=$RUN_DIR/images.ext4
  with_heartbeat "unpack images for ${names[*]}" make_image_disk "$images" "$@"
  for name in "${names[@]}"; do
    number=$((number + 1))
    rm -rf "${RUN_DIR:?}/$name"
    write_machine "$number" "$name" "$RUN_DIR/$name"
    make_tap "nw$name"
    boot "$name" "$RUN_DIR/$name" "$disks/root.ext4" "$images" "nw$name"
  done
  with_heartbeat "wait for the Nodes ${names[*]}" wait_for_nodes
}

wait_for_nodes() {
  local tries
  for ((tries = 0; tries < 180; tries++)); do
    if kubectl get node "${names[@]}" >/dev/null 2>&1; then return; fi
    sleep 1
  done
  tail -n 30 "$RUN_DIR"/*/console
  die "the Nodes ${names[*]} did not appear"
}

down() {
  local name
  run_end "$run"
  for name in "${names[@]}"; do
    rm -rf "$NETWEFT_CACHE/runs/$run/$name"
  done
  rm -f "$NETWEFT_CACHE/runs/$run/images.ext4"
}

case ${1:-} in
  up) shift && up "$@" ;;
  down) down ;;
  -h | --help) usage ;;
  *) usage; exit 1 ;;
esac
