#!/usr/bin/env bash
# Pin the Kubernetes programs of one minor version to the newest patch that the Go module proxy has:
#
#   pin.sh MINOR...        for example: pin.sh 1.34 1.35 1.36 1.37
#
# The script writes MINOR/go.mod and MINOR/go.sum in its folder; commit both. Everything else builds from them with
# -mod=readonly, so a version changes only by running this again. Needs go and jq, and a proxy to ask.
set -euo pipefail
shopt -s inherit_errexit
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
source "$here/../lib.sh"

programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet kubeadm kube-proxy kubectl)

newest_patch() { # MINOR -> 1.N.M; asked outside any module, so that no go.mod limits the answer
  (cd / && GOFLAGS='' go list -m -f '{{.Version}}' "k8s.io/kubernetes@v$1") | sed 's/^v//'
}

upstream_go_mod() { # VERSION -> path of the go.mod that this release was made with
  (cd / && GOFLAGS='' go mod download -json "k8s.io/kubernetes@v$1") | jq -r .GoMod
}

# Kubernetes replaces each of its staging modules by a directory of its own repository. Outside that repository the
# same code is the published module of the same patch, v0.N.M, so those are the replacements to write.
write_go_mod() { # VERSION
  local version=$1 staging=v0.${1#1.} upstream
  upstream=$(upstream_go_mod "$version")
  echo "// Written by pin.sh; the programs of Kubernetes $version, built from their published modules."
  printf 'module netweft.io/e2e/cluster/kubernetes\n\n'
  grep -E '^go ' "$upstream"
  # The behaviour of the Go runtime that this release was tested with. "go 1.x" is the form without the toolchain.
  grep -E '^godebug ' "$upstream" || true
  printf '\nrequire k8s.io/kubernetes v%s\n\ntool (\n' "$version"
  printf '\tk8s.io/kubernetes/cmd/%s\n' "${programs[@]}"
  printf ')\n\nreplace (\n'
  sed -nE "s,^\t(k8s\.io/[a-z-]+) => \./staging/.*,\t\1 => \1 $staging,p" "$upstream" | sort -u
  printf ')\n'
}

pin() { # MINOR
  local minor=$1 version
  version=$(newest_patch "$minor")
  mkdir -p "$here/$minor"
  write_go_mod "$version" >"$here/$minor/go.mod.new"
  mv "$here/$minor/go.mod.new" "$here/$minor/go.mod"
  rm -f "$here/$minor/go.sum"
  (
    cd "$here/$minor"
    with_heartbeat "resolve Kubernetes $version" env GOFLAGS=-mod=mod go mod tidy
    with_heartbeat "check that Kubernetes $version resolves" go list -deps tool
  )
  say "pinned Kubernetes $version in e2e/cluster/kubernetes/$minor"
}

(($#)) || die "say which minor versions to pin, for example: pin.sh 1.36 1.37"
go_environment
for minor in "$@"; do
  pin "$minor"
done
