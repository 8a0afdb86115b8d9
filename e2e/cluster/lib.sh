# shellcheck shell=bash
# Helpers for the scripts of the test cluster; sourced, never run.
#
# Cache: results of slow steps are under $NETWEFT_CACHE (default ~/.cache/netweft), in entries KIND/HASH. HASH covers all
# inputs of the entry. An entry that exists is complete: it is built under another name and renamed.
#
# Runs: whatever outlives one command (a daemon, a namespace, a mount) belongs to a run, so that a later command can
# take away what a killed one left. A run is a directory $NETWEFT_CACHE/runs/NAME with two files:
#   lock   held by flock(2) for as long as the run is alive. Long-lived children keep the descriptor open, so the run
#          lives as long as they do. A run whose lock is free is dead.
#   log    one line per thing, appended BEFORE the thing is made where its name is known before (and at once after,
#          where it is not: a process), oldest first. Removed newest first. Anything already gone is skipped.
#            process PID STARTTIME    STARTTIME is field 22 of /proc/PID/stat: a reused PID is another process
#            netns NAME               as in `ip netns add NAME`
#            mount PATH               an absolute path
#            container NAME           in the engine of DOCKER_HOST
#            link NAME                a network interface in the initial namespace
#            cgroup NAME              at the top of every cgroup hierarchy, with all that is below it
# Other programs that write this format (the namespace lab does) are reaped by the same code. Names carry the run.
set -euo pipefail
shopt -s inherit_errexit

NETWEFT_CACHE=$(realpath -m "${NETWEFT_CACHE:-$HOME/.cache/netweft}")
export NETWEFT_CACHE
mkdir -p "$NETWEFT_CACHE"

# ---- talking to people: progress and errors go to stderr, results to stdout

say() { echo "$*" >&2; }
die() { echo "error: $*" >&2; exit 1; }

usage() { # print the header comment of the calling script
  awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
}

# Runs CMD with its output in a file, and says every 20 s that it is still running, so that no wait looks like a hang.
# When CMD fails the end of its output is printed, else only its lines that begin with "note:". CMD's own errexit stays on: it may be a shell function.
with_heartbeat() { # LABEL CMD...
  local label=$1 output code=0 ticker started=$SECONDS
  shift
  output=$(scratch)/output
  say "$label ..."
  heartbeat_ticker "$label" &
  ticker=$!
  set +e
  (set -e; "$@") >"$output" 2>&1 </dev/null
  code=$?
  set -e
  kill "$ticker" 2>/dev/null || true
  wait "$ticker" 2>/dev/null || true
  if ((code)); then
    say "failed: $label; the end of its output:"
    tail -n 40 "$output" >&2
    rm -rf "${output%/*}"
    return "$code"
  fi
  grep '^note:' "$output" >&2 || true
  rm -rf "${output%/*}"
  say "$label: done in $((SECONDS - started)) s"
}

heartbeat_ticker() { # LABEL; ends by itself when the script is gone
  local waited=0
  exec >/dev/null # the reader of a pipe must not wait for the ticker
  while kill -0 $$ 2>/dev/null; do
    sleep 1 >/dev/null 2>&1
    waited=$((waited + 1))
    if ((waited % 20 == 0)); then say "  still at it after $waited s: $1"; fi
  done
}

# ---- cache

# A new directory for what is needed for a moment; what a killed script left is removed some hours later.
scratch() {
  mkdir -p "$NETWEFT_CACHE/tmp"
  find "$NETWEFT_CACHE/tmp" -mindepth 1 -maxdepth 1 -mmin +240 -exec rm -rf {} +
  mktemp -d "$NETWEFT_CACHE/tmp/XXXXXX"
}

hash_of() { # ITEM...: an existing file counts with its content, anything else as text
  local item
  for item in "$@"; do
    if [[ -f $item ]]; then sha256sum <"$item"; else printf '%s\n' "$item"; fi
  done | sha256sum | cut -c1-12
}

need_free_space() {
  local free_gib
  free_gib=$(($(df -Pk "$NETWEFT_CACHE" | awk 'NR == 2 { print $4 }') / 1024 / 1024))
  ((free_gib >= 20)) || die "only $free_gib GiB are free at $NETWEFT_CACHE and 20 are needed." \
    "To make room delete $NETWEFT_CACHE/go/build first, then old entries of the same folder; the scripts create all of it again."
}

# Prints the directory of an entry, which BUILD_FN makes in its first argument if it is not there. The two entries of a
# kind that were used last are kept. Call it as x=$(cache_entry ...), never in a condition: that would turn errexit off.
cache_entry() { # KIND HASH BUILD_FN
  local kind=$NETWEFT_CACHE/$1 entry=$NETWEFT_CACHE/$1/$2 lock
  mkdir -p "$kind"
  if [[ ! -d $entry ]]; then
    exec {lock}>"$kind/.lock"
    flock -n "$lock" || with_heartbeat "wait for another build of $1" flock "$lock"
    # Under the lock no other process builds this kind, so half-made entries are leftovers.
    rm -rf "$kind"/.building.*
    [[ -d $entry ]] || build_entry "$kind" "$entry" "$3"
    exec {lock}>&-
  fi
  touch "$entry"
  echo "$entry"
}

build_entry() { # KIND_DIR ENTRY BUILD_FN
  need_free_space
  mkdir "$1/.building.$$"
  "$3" "$1/.building.$$" >&2
  mv -T "$1/.building.$$" "$2"
  keep_newest_two "$1"
}

keep_newest_two() { # DIR
  local old
  find "$1" -mindepth 1 -maxdepth 1 -type d ! -name '.*' -printf '%T@ %p\n' | sort -rn | tail -n +3 | cut -d' ' -f2- |
    while read -r old; do rm -rf "$old"; done
}

# ---- Go

# One module cache and one build cache for all Go builds, so that a second Kubernetes version or tool is cheap.
go_environment() {
  require go
  export GOMODCACHE=$NETWEFT_CACHE/go/mod GOCACHE=$NETWEFT_CACHE/go/build
  export GOFLAGS='-mod=readonly -trimpath -buildvcs=false' GOTOOLCHAIN=local CGO_ENABLED=0 GOWORK=off
  mkdir -p "$GOMODCACHE" "$GOCACHE"
}

# Go itself drops only what was not used for five days. Past 10 GB the files used longest ago go, down to 7.
trim_go_cache() {
  local kib
  kib=$(du -sk "$NETWEFT_CACHE/go/build" 2>/dev/null | cut -f1)
  ((${kib:-0} > 10 * 1024 * 1024)) || return 0
  say "trim the Go build cache ($((kib / 1024 / 1024)) GiB)"
  find "$NETWEFT_CACHE/go/build" -type f -printf '%T@ %k %p\n' | sort -n |
    awk -v drop="$((kib - 7 * 1024 * 1024))" 'drop > 0 { drop -= $2; print $3 }' | xargs -r rm -f
}

# ---- what the machine must have

at_least() { # VERSION MINIMUM
  [[ -n $1 && $(printf '%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]
}

# shellcheck source=requirements.sh
source "$(dirname "${BASH_SOURCE[0]}")/requirements.sh"
# shellcheck source=runs.sh
source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
