#!/usr/bin/env bash
# Every target of the Makefile names all that the machine lacks before it does anything else, and packages are installed where
# CONTRIBUTING.md says so. Needs neither root nor a network: PATH has a few commands, and stand-ins for the toolchains and for apt-get,
# which note what they are asked to do.
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$project"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
problems=0
problem() { echo "$*"; problems=$((problems + 1)); }

# ---- a machine

commands=(awk basename bash cat cut date dirname env find grep head id make mkdir mktemp mv realpath rm sed sh sha256sum sleep sort tail
  tee timeout touch tr)

stand_in() { # NAME; its text is standard input
  rm -f "$work/bin/$1" # it may be a link to the machine's own
  { echo '#!/bin/sh'; cat; } >"$work/bin/$1"
  chmod +x "$work/bin/$1"
}

make_machine() {
  local command
  mkdir "$work/bin"
  for command in "${commands[@]}"; do ln -s "$(type -P "$command")" "$work/bin/$command"; done
  for command in cargo rustc go apt-get; do
    # The stand-in answers requests for versions and checks; any other call is an unexpected build or installation.
    stand_in "$command" <<STAND_IN
case "$command \$*" in
  *--version) echo "$command 99.0.0" ;;
  'go env GOVERSION') echo go99.0.0 ;;
  apt-get\ indextargets*) ;;
  *) echo "$command \$*" >>"$work/asked" ;;
esac
STAND_IN
  done
}

# Runs a command there with these variables. Sets said, asked and code.
on_machine() { # VARIABLE=VALUE... CMD...
  code=0
  : >"$work/asked"
  env -i HOME="$work" PATH="$work/bin" NETWEFT_CACHE="$work/cache" timeout 60 env "$@" >"$work/said" 2>&1 </dev/null || code=$?
  said=$(cat "$work/said")
  asked=$(cat "$work/asked")
}

packages() { sed -n 's/^  packages of Debian: //p' <<<"$said"; }

# ---- what each target lacks there

checked=(help down clean) # need nothing

expect() { # TARGET PACKAGES [VARIABLE=VALUE...]
  local target=$1 wanted got
  wanted=$(tr -s ' ' '\n' <<<"$2" | sort -u)
  shift 2
  checked+=("$target")
  on_machine NETWEFT_INSTALL=0 make --silent "$target" "$@"
  # Files that this machine may have or lack.
  got=$(packages | tr ' ' '\n' | sed -E '/^(ca-certificates|debian-archive-keyring)$/d')
  [[ $got == "$wanted" ]] || problem "make $target $*: these packages should be named as missing: $(tr '\n' ' ' <<<"$wanted")"$'\n'"$said"
  ((code)) || problem "make $target $*: succeeds on a machine that has nothing"
  [[ -z $asked ]] || problem "make $target $*: works before it says what is missing: $asked"
}

every_target_names_all_that_is_missing() {
  local rust='gcc libc6-dev' lab='gcc libc6-dev iproute2 iputils-ping mount nftables procps' debian='apt mmdebstrap' \
    uml='user-mode-linux kmod iproute2' engine='docker.io iptables jq iproute2' setup
  setup="$lab $debian $uml $engine"
  expect build "$rust"
  expect generate "$rust"
  expect sim "$rust"
  expect lint "$rust git shellcheck"
  expect fresh git
  expect lab "$lab"
  expect lab "$lab $uml" MODE=vxlan,ipip
  expect lab "$lab $uml" OTHER_KERNEL=1
  expect lab "$lab $debian" MODE=underlay
  expect lab "$lab $debian" SCENARIO=drift,bgp-edits
  expect migrate "$lab $debian $uml"
  expect snapshots "$lab $debian $uml"
  expect bench "$lab $debian"
  expect demo "$rust $debian $engine"
  expect e2e "$setup e2fsprogs"
  expect soak "$setup"
  expect test "$setup e2fsprogs git shellcheck strace"
  expect test-full "$setup e2fsprogs git shellcheck strace"
}

no_target_is_left_out() {
  local target
  while read -r target; do
    [[ " ${checked[*]} fmt " == *" $target "* ]] || problem "make $target is not checked by tests/requirements.sh"
  done < <(sed -nE 's/^([a-z0-9-]+):.*## .*/\1/p' Makefile)
}

# ---- who may install

# Whether root with these variables installs, at once, all that `make lint` needs.
installs() { # VARIABLE=VALUE...
  on_machine "$@" make --silent lint
  [[ $asked == *'apt-get update'* && $asked == *'apt-get install -y --no-install-recommends '*gcc*git*libc6-dev*shellcheck* ]]
}

packages_are_installed_where_that_is_allowed() {
  local variables
  stand_in id <<<'echo 0'
  for variables in A= CI=true 'NETWEFT_INSTALL=1 SUDO_UID=1000' 'CI=true SUDO_UID=1000'; do
    # shellcheck disable=SC2086 # words
    installs $variables || problem "root with $variables does not install: $said"
  done
  [[ $said == *'the command shellcheck is not on PATH, though these packages were installed: shellcheck'* ]] ||
    problem "what apt-get did not bring is not named: $said"
  for variables in NETWEFT_INSTALL=0 'NETWEFT_INSTALL=0 CI=true' SUDO_UID=1000 DOAS_USER=user PKEXEC_UID=1000; do
    # shellcheck disable=SC2086 # words
    if installs $variables || [[ -n $asked ]]; then problem "root with $variables installs: $asked"; fi
    [[ $said == *'apt-get update && apt-get install -y --no-install-recommends '* ]] || problem "$variables: no command is given: $said"
  done
  stand_in id <<<'echo 1000'
  if installs CI=true || [[ -n $asked ]]; then problem "a user other than root installs: $asked"; fi
  on_machine make --silent lab
  [[ $said == *'root, for network namespaces'* ]] || problem "the lab does not ask for root: $said"
}

# What no package brings is named with the packages, and then nothing is installed.
old_toolchains_are_named() {
  stand_in id <<<'echo 0'
  stand_in rustc <<<'echo rustc 1.63.0'
  stand_in go <<<'echo go1.19.8'
  on_machine make --silent lint
  [[ $said == *'Rust 1.'*' or newer: '*'rustc 1.63.0'* && $said == *'Go 1.'*' or newer: '*'go1.19.8'* && -n $(packages) ]] ||
    problem "old toolchains are not named with the packages: $said"
  rm "$work"/bin/{rustc,cargo,go}
  on_machine make --silent lint
  [[ $said == *'cargo and rustc are not on PATH'* && $said == *'go is not on PATH'* ]] || problem "missing toolchains are not named: $said"
  [[ $asked != *'apt-get install'* ]] || problem "packages are installed though the toolchains are missing: $asked"
}

make_machine
every_target_names_all_that_is_missing
no_target_is_left_out
packages_are_installed_where_that_is_allowed
old_toolchains_are_named
((problems == 0))
