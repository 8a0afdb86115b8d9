#!/usr/bin/env bash
# Build the programs that the test cluster needs from their pinned Go modules, each cached on its own:
#
#   build-tools.sh NAME...    prints one directory per name, in that order, with the built programs in it
#
#   kubernetes   kube-apiserver kube-controller-manager kube-scheduler kubelet kubeadm kube-proxy kubectl, of the minor
#                version KUBERNETES_VERSION (default 1.37)
#   kubectl      kubectl alone, for a machine where nothing else of Kubernetes is built
#   etcd         etcd etcdctl            containerd   containerd containerd-shim-runc-v2 ctr loopback
#   coredns      kind      helm      pause
#   chained      netweft-portmap netweft-bandwidth: the plugins that are chained after netweft; and netweft-loopback
#   flannel      flannel-udp: Flannel's udp backend, to measure against (needs a C compiler)
#   cni          cnitool, and the reference plugins bridge, ptp and host-local, to test and to measure against
#
# Cold, kubernetes takes about 9 minutes on two cores and all others together 6. Entries lie in $NETWEFT_CACHE.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
source "$here/lib.sh"
# shellcheck source=versions.sh
source "$here/versions.sh"

# go_build OUT_DIR [LINKER_FLAGS] [PACKAGE...]: static programs of the module in the current directory; its tools by
# default.
go_build() {
  local out=$1 flags="-s -w ${2:-}"
  shift $(($# < 2 ? $# : 2))
  (($#)) || set -- tool
  nice -n "${NETWEFT_NICE:-5}" go build -o "$out/" -ldflags "$flags" "$@"
}

version_flags() { # VERSION VARIABLE...: sets string variables at link time
  local version=$1 variable
  shift
  for variable in "$@"; do printf ' -X %s=%s' "$variable" "$version"; done
}

kubernetes_flags() { # what the release's own build sets, as far as a program reads it
  local version minor package
  version=$(kubernetes_patch "$KUBERNETES_VERSION")
  minor=${KUBERNETES_VERSION#1.}
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    version_flags "$version" "$package.gitVersion"
    version_flags 1 "$package.gitMajor"
    version_flags "$minor" "$package.gitMinor"
    version_flags clean "$package.gitTreeState"
  done
}

build_kubernetes() { go_build "$1" "$(kubernetes_flags)"; }
build_kubectl() { go_build "$1" "$(kubernetes_flags)" k8s.io/kubernetes/cmd/kubectl; }
build_kind() { go_build "$1"; }
build_coredns() { go_build "$1"; }
build_pause() { go_build "$1" '' .; }
build_cni() { go_build "$1"; }
build_flannel() { # its proxy is C
  CGO_ENABLED=1 go_build "$1" '' .
  mv "$1/flannel" "$1/flannel-udp"
}

build_containerd() {
  local package=github.com/containerd/containerd/v2
  go_build "$1" "$(version_flags "$(module_version . "$package")" "$package/version.Version")"
}

build_etcd() {
  go_build "$1"
  # Go names a program after its package; etcd's is called server.
  mv "$1/server" "$1/etcd"
}

build_helm() {
  go_build "$1" "$(version_flags "$(module_version . helm.sh/helm/v4)" helm.sh/helm/v4/internal/version.version)"
}

build_chained() {
  local plugin utils=github.com/containernetworking/plugins/pkg/utils/buildversion
  go_build "$1" "$(version_flags "$(module_version . github.com/containernetworking/plugins)" "$utils.BuildVersion")"
  for plugin in portmap bandwidth loopback; do mv "$1/$plugin" "$1/netweft-$plugin"; done
}

module_of() { # NAME -> directory of its go.mod
  case $1 in
    kubernetes | kubectl) kubernetes_module "$KUBERNETES_VERSION" ;;
    chained) echo "$repo_dir/cni/chained" ;;
    *) echo "$here/tools/$1" ;;
  esac
}

kind_of() { # NAME -> kind of cache entry; per minor version, so that an upgrade test's two do not push out a third
  case $1 in
    kubernetes | kubectl) echo "$1-$KUBERNETES_VERSION" ;;
    *) echo "tool-$1" ;;
  esac
}

build_in_module() { # DIR; the name comes from the caller's variable, as cache_entry passes the directory only
  local module
  module=$(module_of "$tool")
  cd "$module"
  with_heartbeat "build $(kind_of "$tool")" "build_$tool" "$1"
}

tool_entry() { # NAME
  local tool=$1 module sources=() key
  module=$(module_of "$tool")
  mapfile -t sources < <(find "$module" -maxdepth 1 -type f | sort)
  key=$(hash_of "$(go version)" "$(declare -f go_build version_flags kubernetes_flags "build_$tool")" "${sources[@]}")
  cache_entry "$(kind_of "$tool")" "$key" build_in_module
}

(($#)) || { usage; exit 1; }
case $1 in -h | --help) usage; exit ;; esac
for name in "$@"; do
  module=$(module_of "$name")
  [[ -f $module/go.mod ]] || die "there is no tool named '$name'; see build-tools.sh --help"
done
go_environment
for name in "$@"; do
  tool_entry "$name"
done
trim_go_cache
