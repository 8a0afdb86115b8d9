# shellcheck shell=bash
# Versions of the test cluster; sourced after lib.sh.
# The go.mod files of this folder pin the Kubernetes programs and the tools. This file pins what Go cannot pin.

# The minor version of Kubernetes: 1.34, 1.35, 1.36 or 1.37.
KUBERNETES_VERSION=${KUBERNETES_VERSION:-1.37}

cluster_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo_dir=$(cd "$cluster_dir/../.." && pwd)
export repo_dir

# kind publishes one node image per minor version and release of kind, rarely of the newest patch.
published_node_image() { # MINOR
  case $1 in
    1.37) echo kindest/node:v1.37.0 ;;
    1.36) echo kindest/node:v1.36.4 ;;
    1.35) echo kindest/node:v1.35.1 ;;
    1.34) echo kindest/node:v1.34.3 ;;
    *) die "no published node image is known for Kubernetes $1: add it to e2e/cluster/versions.sh" ;;
  esac
}

kubernetes_module() { # MINOR -> the directory of its go.mod
  [[ -f $cluster_dir/kubernetes/$1/go.mod ]] ||
    die "Kubernetes $1 is not pinned in $cluster_dir/kubernetes: choose one that is, or run kubernetes/pin.sh $1"
  echo "$cluster_dir/kubernetes/$1"
}

module_version() { # GO_MOD_DIR MODULE -> vX.Y.Z, as required there
  awk -v module="$2" '$1 == "require" { sub(/^require /, "") } $1 == module { print $2; exit }' "$1/go.mod"
}

kubernetes_patch() { # MINOR -> v1.N.M
  module_version "$(kubernetes_module "$1")" k8s.io/kubernetes
}

# The Debian release of the node image and of the images' base. Its systemd (252) still runs on cgroup v1.
DEBIAN_RELEASE=bookworm
export DEBIAN_RELEASE

# Where BIRD comes from: the first release of Debian whose own is new enough. Its package asks for something that makes
# system users, and the second package is the small one that does.
BIRD_DEBIAN_RELEASE=forky
BIRD_PACKAGES=bird2,systemd-standalone-sysusers
BIRD_VERSION_MIN=2.19.2
export BIRD_DEBIAN_RELEASE BIRD_PACKAGES BIRD_VERSION_MIN
