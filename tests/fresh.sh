#!/usr/bin/env bash
# `make test` as on a new machine: every cache empty, and a PATH with the declared commands only. Slow (up to an hour).
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# What the README asks for; everything else must be installed by the scripts themselves or built.
toolchains=(cargo rustc rustdoc rustfmt cargo-fmt cargo-clippy clippy-driver go gofmt)

work=$(mktemp -d "${TMPDIR:-/var/tmp}/netweft-fresh.XXXXXX")
trap 'NETWEFT_CACHE=$work/cache "$project/hack/down.sh" >/dev/null 2>&1 || true; chmod -R u+w "$work"; rm -rf "$work"' EXIT
mkdir -p "$work/bin"
for tool in "${toolchains[@]}"; do
  if path=$(command -v "$tool"); then ln -s "$path" "$work/bin/$tool"; fi
done
# The checkout as it is committed: what is only in the work tree does not count.
git clone --quiet "$project" "$work/netweft"
cd "$work/netweft"
env -i HOME="$HOME" PATH="$work/bin:/usr/sbin:/usr/bin:/sbin:/bin" CI=true \
  RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}" CARGO_HOME="$work/cargo" NETWEFT_CACHE="$work/cache" \
  GOPROXY="$(go env GOPROXY)" \
  make test
