# shellcheck shell=bash
# What a machine must have, a part of lib.sh: hack/requirements lists it, this checks and installs it.

requirements_table=$(dirname "${BASH_SOURCE[0]}")/../../hack/requirements

# Ends the script unless this machine has what the names need, with everything that is missing. Installs packages first where
# that is allowed.
require() { # NAME...
  local -A collected=() held=()
  local words=() packages=() lacks=() name
  for name in "$@"; do collect_words "$name"; done
  find_lacks
  if ((${#packages[@]})) && ((${#lacks[@]} == 0)) && may_install; then
    with_heartbeat "install ${packages[*]}" install_packages "${packages[@]}"
    find_lacks installed
  fi
  ((${#packages[@]} + ${#lacks[@]} == 0)) || report_lacks "$*"
}

# Whether this may run apt-get: yes for CI=true and NETWEFT_INSTALL=1, and for root. Who became root by sudo, doas or pkexec for one
# command is a person at a machine of their own, and says NETWEFT_INSTALL=1. NETWEFT_INSTALL=0 is always no.
may_install() {
  [[ $(id -u) == 0 && -n $(type -P apt-get) ]] || return 1
  [[ ${NETWEFT_INSTALL:-} != 0 ]] || return 1
  [[ ${NETWEFT_INSTALL:-} == 1 || ${CI:-} == true || -z ${SUDO_UID:-}${DOAS_USER:-}${PKEXEC_UID:-} ]]
}

# A package list that one broken source cannot update may still do.
install_packages() { # PACKAGE...
  apt-get update || say 'apt-get update failed; trying with the package lists that are there'
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

report_lacks() { # NAMES
  local lack
  say "error: this machine lacks what is needed for: $1"
  for lack in "${lacks[@]}"; do say "  $lack"; done
  if ((${#packages[@]})); then
    say "  packages of Debian: ${packages[*]}"
    if may_install; then
      say 'The packages will be installed when the rest is there.'
    else
      say 'To install the packages, run as root:'
      say "  apt-get update && apt-get install -y --no-install-recommends ${packages[*]}"
      say 'or run the same command again as root with NETWEFT_INSTALL=1, which does so.'
    fi
  fi
  exit 1
}

# The packages that the names may need on any machine.
list_packages() { # NAME...
  local -A collected=() held=()
  local words=() all_conditions=1 name word found=()
  for name in "$@"; do collect_words "$name"; done
  for word in "${words[@]}"; do
    [[ $word != *=* ]] || found+=("${word#*=}")
  done
  packages_of "${found[@]}"
}

# ---- the table

line_of() { # NAME -> its words
  awk -v name="$1" '!/^#/ && (at = index($0, ":")) {
      count = split(substr($0, 1, at - 1), names, " ")
      for (i = 1; i <= count; i++) if (names[i] == name) { print substr($0, at + 1); found = 1 }
    } END { exit !found }' "$requirements_table"
}

# Appends to words, each once. With all_conditions=1 every condition holds.
collect_words() { # NAME
  local line word
  [[ -z ${collected[$1]:-} ]] || return 0
  collected[$1]=1
  line=$(line_of "$1") || die "hack/requirements has no line for '$1': use one of its names, or add the line"
  for word in $line; do
    case $word in
      *\?*) if holds "${word%%\?*}"; then collect_words "${word#*\?}"; fi ;;
      @* | *=*)
        [[ -n ${collected[$word]:-} ]] || words+=("$word")
        collected[$word]=1
        ;;
      *) collect_words "$word" ;;
    esac
  done
}

holds() { # CONDITION; each is asked once
  [[ -z ${all_conditions:-} ]] || return 0
  if [[ -z ${held[$1]:-} ]]; then
    if "$1"; then held[$1]=yes; else held[$1]=no; fi
  fi
  [[ ${held[$1]} == yes ]]
}

# Sets packages (sorted) and lacks (sentences) from words. What a package should have brought is a sentence too.
find_lacks() { # [installed]
  local word lack found=()
  lacks=()
  for word in "${words[@]}"; do
    lack=$(lack_of "${word%%=*}")
    [[ -n $lack ]] || continue
    if [[ $word == *=* && -z ${1:-} ]]; then
      found+=("${word#*=}")
    elif [[ $word == *=* ]]; then
      lacks+=("$lack, though these packages were installed: ${word#*=}")
    else
      lacks+=("$lack")
    fi
  done
  mapfile -t packages < <(packages_of "${found[@]}")
}

packages_of() { # PACKAGES...
  local IFS=,
  (($# == 0)) || tr , '\n' <<<"$*" | sort -u
}

lack_of() { # PROBE -> what is missing, or nothing
  case $1 in
    @*) "check_${1#@}" ;;
    /*) [[ -e $1 ]] || echo "the file $1 is missing" ;;
    *) [[ -n $(type -P "$1") ]] || echo "the command $1 is not on PATH" ;;
  esac
}

# ---- checks: each prints what is missing, or nothing

check_root() {
  # shellcheck disable=SC2016 # PATH is the reader's
  [[ $(id -u) == 0 ]] ||
    echo 'root, for network namespaces, Debian file systems and a private container engine: sudo env "PATH=$PATH" make TARGET'
}

check_engine_or_root() {
  [[ $(id -u) == 0 ]] || echo "a container engine: 'docker info' fails, and only root can start a private one; start docker, or join its group"
}

check_rust() {
  local wanted
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$requirements_table")/../Cargo.toml")
  if [[ -z $(type -P cargo) || -z $(type -P rustc) ]]; then
    echo "Rust $wanted or newer: cargo and rustc are not on PATH (https://rustup.rs)"
  elif ! at_least "$(rustc --version 2>/dev/null | awk '{ print $2 }')" "$wanted"; then
    echo "Rust $wanted or newer: 'rustc --version' says $(rustc --version 2>&1 | head -n 1)"
  fi
}

check_rust_components() {
  local missing='' component
  for component in fmt clippy; do
    cargo "$component" --version >/dev/null 2>&1 || missing+=" cargo-$component"
  done
  [[ -z $missing ]] || echo "components of Rust:$missing (rustup component add rustfmt clippy)"
}

check_go() {
  local wanted version
  wanted=$(go_version_needed)
  if [[ -z $(type -P go) ]]; then
    echo "Go $wanted or newer: go is not on PATH (https://go.dev/dl)"
    return
  fi
  version=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null) || version=
  at_least "${version#go}" "$wanted" || echo "Go $wanted or newer: 'go env GOVERSION' says '$version'"
}

go_version_needed() { # the newest that a go.mod names
  local root
  root=$(dirname "$requirements_table")/..
  sed -n 's/^go //p' "$root"/cni/chained/go.mod "$root"/e2e/cluster/tools/*/go.mod "$root"/e2e/cluster/kubernetes/*/go.mod |
    sort -V | tail -n 1
}

# Every program is linked statically, which needs more than a compiler.
check_static_programs() {
  local work
  work=$(mktemp -d)
  printf '#include <stdlib.h>\nint main(void) { return EXIT_SUCCESS; }\n' >"$work/try.c"
  cc -static -o "$work/try" "$work/try.c" >/dev/null 2>&1 || echo 'cc cannot link a static program'
  rm -rf "$work"
}

# apt reads from the indices which source is Debian, so a new container has no Debian source before apt-get update.
check_debian_mirror() {
  [[ -n $(debian_uris Debian) ]] || echo 'the apt sources have no mirror of Debian: set DEBIAN_MIRROR to the URL of one'
}

debian_uris() { # LABEL -> URLs of mirrors
  if [[ -n ${DEBIAN_MIRROR:-} ]]; then
    [[ $1 != Debian ]] || echo "$DEBIAN_MIRROR"
    return
  fi
  [[ -n $(type -P apt-get) ]] || return 0
  # shellcheck disable=SC2016 # apt's own placeholders
  apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 2>/dev/null |
    awk -v label="$1" '$1 == label { print $2 }' | sort -u
}

# ---- conditions

no_engine() { ! timeout 15 docker info >/dev/null 2>&1; }

# Whether images have to be made from packages here: a private engine has no way out, and another may have none either.
no_registry() {
  local image
  ! no_engine || return 0
  image=$(sed -n 's/^ARG DEBIAN_IMAGE=//p' "$(dirname "$requirements_table")/../Dockerfile")
  ! docker image inspect "$image" >/dev/null 2>&1 && ! timeout 20 docker manifest inspect "$image" >/dev/null 2>&1
}

no_ipip() { ! has_tunnels ipip; }

# Whether this kernel has tunnels of a kind is tried: its version says nothing about how it was built.
has_tunnels() { # KIND
  unshare --net ip link add name try type "$1" local 192.0.2.1 remote 192.0.2.2 2>/dev/null
}
