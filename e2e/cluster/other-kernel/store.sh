#!/bin/bash
# In a kind node: unpacks images into a store of their own, by a containerd of their own, and prints the store as a tar.
# The images are kube-proxy and pause of the node and those of the archive on standard input.
set -euo pipefail
store=/var/lib/netweft-store
rm -rf "$store"
mkdir -p "$store"
cat >"$store.toml" <<CONFIG
version = 2
root = "$store"
state = "$store.state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$store.sock"
CONFIG
containerd --config "$store.toml" >"$store.log" 2>&1 &
daemon=$!
until ctr --address "$store.sock" version >/dev/null 2>&1; do
  kill -0 "$daemon" || { cat "$store.log" >&2; exit 1; }
  sleep 0.1
done

import() { ctr --address "$store.sock" --namespace k8s.io images import --local --snapshotter overlayfs - >&2; }

mapfile -t own < <(ctr --namespace k8s.io images ls --quiet | grep -E '/(kube-proxy|pause):')
ctr --namespace k8s.io images export --local - "${own[@]}" | import
import
kill "$daemon"
wait "$daemon" || true
tar -C "$store" --xattrs --xattrs-include='*' -c .
rm -rf "$store" "$store".*
