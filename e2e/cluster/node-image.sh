#!/usr/bin/env bash
# Make the image that a kind node runs, where none can be pulled, from Debian packages and Go-built programs:
#
#   node-image.sh              prints the archive (as of `docker save`) of netweft/node:HASH, .../HASH/image.tar
#
# Variables: KUBERNETES_VERSION (minor, default 1.37). Needs root, go and mmdebstrap; no container engine.
# What kind expects of a node image is in its own module under images/base: those files are copied from there.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
source "$here/lib.sh"
# shellcheck source=versions.sh
source "$here/versions.sh"
# shellcheck source=archive.sh
source "$here/archive.sh"

# Debian's runc runs containers on cgroup v1 and v2; containerd is newer than Debian's, since Kubernetes 1.36 needs 2.x.
node_packages=systemd,systemd-sysv,dbus,conntrack,iptables,nftables,iproute2,ethtool,util-linux,mount,kmod,libseccomp2
node_packages+=,pigz,bash,ca-certificates,curl,jq,procps,runc,iputils-ping,hostname,socat,tcpdump
# Both flavours of iptables are there, kube-proxy's other mode needs one; busybox gives the image a shell.
proxy_packages=nftables,iptables,conntrack,kmod,busybox-static

find_programs() { # sets the directories of what goes in
  local directories
  directories=$("$here/build-tools.sh" kubernetes containerd etcd coredns kind pause)
  {
    read -r kubernetes && read -r containerd && read -r etcd && read -r coredns && read -r kind && read -r pause
  } <<<"$directories"
  patch=$(kubernetes_patch "$KUBERNETES_VERSION")
}

image_hash() { # the programs count by the hashes that name their directories
  hash_of "$here/node-image.sh" "$here/archive.sh" "$DEBIAN_RELEASE" \
    "${kubernetes##*/}" "${containerd##*/}" "${etcd##*/}" "${coredns##*/}" "${kind##*/}" "${pause##*/}"
}

# ---- the control plane's images

expected_image() { # NAME -> REGISTRY/NAME:TAG that this kubeadm will ask for
  "$kubernetes/kubeadm" config images list --kubernetes-version "$patch" 2>/dev/null | grep "/$1:"
}

# etcd and CoreDNS are pinned at the versions of the newest Kubernetes here. An older kubeadm asks for older tags; it
# gets the pinned builds under them, and this says so.
report_version() { # IMAGE VERSION
  local tag=${1##*:}
  tag=${tag#v}
  [[ ${tag%-*} == "${2#v}" ]] || say "note: $1 holds the pinned version $2"
}

add_program_image() { # ARCHIVE_DIR IMAGE PROGRAM...
  local archive=$1 image=$2 root
  shift 2
  root=$(mktemp -d "$archive.root.XXXX")
  mkdir -p "$root/usr/local/bin" "$root/tmp"
  chmod 1777 "$root/tmp"
  cp "$@" "$root/usr/local/bin/"
  # gzip: every node gets a copy of all this at its creation, and unpacks only what it runs.
  archive_add "$archive" "$image" "$root" '{"Env": ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"]}' 'gzip -1'
  rm -rf "$root"
}

add_root_program_image() { # ARCHIVE_DIR IMAGE PROGRAM: the program alone, as the entry point, in /
  local root
  root=$(mktemp -d "$1.root.XXXX")
  cp "$3" "$root/"
  archive_add "$1" "$2" "$root" "{\"Entrypoint\": [\"/$(basename "$3")\"]}" 'gzip -1'
  rm -rf "$root"
}

add_proxy_image() { # ARCHIVE_DIR
  local root=$1.proxy name
  debian_root "$root" extract "$proxy_packages"
  mkdir -p "$root/usr/local/bin"
  cp "$kubernetes/kube-proxy" "$root/usr/local/bin/"
  for name in iptables ip6tables iptables-save iptables-restore ip6tables-save ip6tables-restore; do
    ln -sf xtables-nft-multi "$root/usr/sbin/$name"
  done
  archive_add "$1" "registry.k8s.io/kube-proxy:$patch" "$root" \
    '{"Env": ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"]}' 'gzip -1'
  rm -rf "$root"
}

make_control_plane_images() { # FILE
  local archive=$1.d name image
  mkdir "$archive"
  for name in kube-apiserver kube-controller-manager kube-scheduler; do
    add_program_image "$archive" "registry.k8s.io/$name:$patch" "$kubernetes/$name"
  done
  add_proxy_image "$archive"
  image=$(expected_image etcd)
  report_version "$image" "$(module_version "$here/tools/etcd" go.etcd.io/etcd/server/v3)"
  add_program_image "$archive" "$image" "$etcd/etcd" "$etcd/etcdctl"
  image=$(expected_image coredns)
  report_version "$image" "$(module_version "$here/tools/coredns" github.com/coredns/coredns)"
  add_root_program_image "$archive" "$image" "$coredns/coredns"
  add_root_program_image "$archive" "$(expected_image pause)" "$pause/pause"
  archive_finish "$archive" "$1"
}

# ---- the node's file system

kind_base_files() {
  go_environment
  (cd "$here/tools/kind" && go mod download sigs.k8s.io/kind && go list -m -f '{{.Dir}}/images/base/files' sigs.k8s.io/kind)
}

make_node_root() { # DIR
  local root=$1 files
  debian_root "$root" minbase "$node_packages"
  files=$(kind_base_files)
  mkdir -p "$root/kind/bin" "$root/kind/manifests" "$root/etc/kubernetes/manifests" "$root/opt/cni/bin"
  cp -r "$files/etc/." "$root/etc/"
  cp -r "$files/kind/." "$root/kind/"
  install -m 755 "$files"/usr/local/bin/* "$root/usr/local/bin/"
  # The module cache is read-only, and so are copies of it.
  chmod -R u+w "$root/etc" "$root/kind"
  chmod 755 "$root"/kind/bin/*
  install -m 755 "$kubernetes"/{kubelet,kubeadm,kubectl} "$root/usr/bin/"
  install -m 755 "$containerd"/{containerd,containerd-shim-runc-v2,ctr} "$root/usr/local/bin/"
  install -m 755 "$containerd/loopback" "$root/opt/cni/bin/"
  printf %s "$patch" >"$root/kind/version"
  configure_services "$root"
  configure_containerd "$root"
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
}

configure_services() { # ROOT: as kind's own Dockerfile does
  local root=$1
  find "$root/lib/systemd/system/sysinit.target.wants/" -name systemd-tmpfiles-setup.service -delete
  rm -f "$root"/lib/systemd/system/{multi-user,local-fs,basic}.target.wants/* "$root"/etc/systemd/system/*.wants/* \
    "$root"/lib/systemd/system/sockets.target.wants/*{udev,initctl}*
  echo ReadKMsg=no >>"$root/etc/systemd/journald.conf"
  chroot "$root" /usr/bin/systemctl enable kubelet containerd undo-mount-hacks
  # binfmt_misc belongs to the whole kernel.
  chroot "$root" /usr/bin/systemctl mask systemd-binfmt
}

configure_containerd() { # ROOT
  # A machine without CAP_SYS_RESOURCE may not lower an OOM score; where it may, this changes nothing for tests.
  sed -i "s/restrict_oom_score_adj = false/restrict_oom_score_adj = true/
    s#sandbox_image = .*#sandbox_image = \"$(expected_image pause)\"#" "$1/etc/containerd/config.toml"
  "$containerd/ctr" oci spec | jq '.hooks.createContainer += [{path: "/kind/bin/mount-product-files.sh"}]
    | del(.process.rlimits)' >"$1/etc/containerd/cri-base.json"
}

# The images go into the store of the node's containerd before its first start: a containerd of our own, without CRI,
# writes there. They are not unpacked, as overlay does not lie on overlay; that happens on first use.
import_images() { # ROOT ARCHIVE
  local state daemon tries
  state=$(mktemp -d /tmp/netweft-ctr.XXXX)
  printf 'version = 2\nroot = "%s"\nstate = "%s"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\n address = "%s"\n' \
    "$1/var/lib/containerd" "$state/state" "$state/sock" >"$state/config.toml"
  "$containerd/containerd" --config "$state/config.toml" &
  daemon=$!
  for ((tries = 0; tries < 100; tries++)); do
    ! "$containerd/ctr" -a "$state/sock" version >/dev/null 2>&1 || break
    sleep 0.1
  done
  "$containerd/ctr" -a "$state/sock" -n k8s.io images import --local --no-unpack "$2"
  kill "$daemon"
  wait "$daemon" || true
  rm -rf "$state"
}

build_image() { # ENTRY_DIR
  with_heartbeat "make the images of the control plane" make_control_plane_images "$1/control-plane.tar"
  with_heartbeat "make the node's file system" make_node_root "$1/root"
  with_heartbeat "put the images into it" import_images "$1/root" "$1/control-plane.tar"
  with_heartbeat "pack the node image" pack_image "$1"
  rm -rf "$1/root" "$1/control-plane.tar"
}

pack_image() { # ENTRY_DIR
  mkdir "$1/archive"
  # systemd ends on SIGRTMIN+3.
  archive_add "$1/archive" "$name" "$1/root" \
    '{"Env": ["container=docker"], "StopSignal": "SIGRTMIN+3", "Entrypoint": ["/usr/local/bin/entrypoint", "/sbin/init"]}'
  archive_finish "$1/archive" "$1/image.tar"
}

case ${1:-} in -h | --help) usage; exit ;; esac
find_programs
hash=$(image_hash)
name=netweft/node:$hash
require image-archives
entry=$(cache_entry "node-image-$KUBERNETES_VERSION" "$hash" build_image)
echo "$entry/image.tar"
