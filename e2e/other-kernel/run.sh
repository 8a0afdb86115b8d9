#!/usr/bin/env bash
# Runs a command on another kernel than the machine's own: Debian's user-mode Linux, which has links of the kind ipip.
#
#   run.sh CMD...                  on the other kernel
#   run.sh --unless KIND CMD...    here if this kernel can make tunnels of KIND (ipip, gre, sit), else there
#
# The command finds the machine's own files, which it cannot change, and a /run of its own. There is no network and no
# standard input. What it says comes out while it says it, and its exit code is this script's. A kernel that crashes,
# hangs or ends without a word is a failure, and its last words are shown.
#
# Variables: OTHER_KERNEL_SECONDS (limit, 900), OTHER_KERNEL_MEMORY (1G), NETWEFT_CACHE, NETWEFT_INSTALL (see
# e2e/cluster/requirements.sh)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../cluster/lib.sh
source "$here/../cluster/lib.sh"
# shellcheck source=uml.sh
source "$here/uml.sh"

seconds=${OTHER_KERNEL_SECONDS:-900}

# The command of the first process there, as a file: the kernel's command line is short and has no quotes.
write_job() { # CMD...
  {
    printf 'cd %q\n' "$PWD"
    printf 'export PATH=%q\n' "$PATH"
    printf 'command=('
    printf '%q ' "$@"
    printf ')\nlast_words=%q\n' "$last_words"
  } >"$RUN_DIR/job"
}

# All its processes are in one PID namespace and die with the first, and that with this script. Its serial line carries
# the command's words as they are; its console, with what the kernel itself says, goes to a file.
boot() {
  run_log process "$BASHPID" "$(process_start_time "$BASHPID")"
  exec setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child=KILL --mount-proc \
    timeout --kill-after=5 "$seconds" env "LD_PRELOAD=$library" linux.uml "mem=${OTHER_KERNEL_MEMORY:-1G}" \
    rootfstype=hostfs rootflags=/ ro "init=$here/init.sh" "NETWEFT_JOB=$RUN_DIR/job" panic=-1 noreboot \
    con=null con0=null,fd:1 ssl=null ssl0=null,fd:3 "uml_dir=$RUN_DIR/uml/" umid=kernel \
    3>&1 >"$RUN_DIR/console" 2>&1 </dev/null
}

# Takes the last words out of what is said, and keeps them: they carry the exit code.
listen() {
  sed --unbuffered "/$last_words [0-9]*\$/{w $RUN_DIR/ended
    s/$last_words .*//;/^\$/d}"
}

run_there() { # CMD...
  local code library
  require other-kernel
  library=$(uml_library)
  run_begin other-kernel
  rm -rf "${RUN_DIR:?}"/{ended,uml}
  last_words=ended-$(od -An -N8 -tx8 /dev/urandom | tr -d ' ')
  write_job "$@"
  set +e
  boot | listen
  code=${PIPESTATUS[0]}
  set -e
  rm -f "$RUN_DIR/log"
  report "$code"
}

report() { # CODE of the kernel itself
  if [[ -s $RUN_DIR/ended ]]; then
    exit "$(sed -n "s/.*$last_words //p" "$RUN_DIR/ended")"
  fi
  say "the end of what the other kernel said ($RUN_DIR/console):"
  # Without the addresses of a stack trace.
  grep -vE '^ *(\[<)?[0-9a-f]{8}' "$RUN_DIR/console" | tail -n 20 >&2
  [[ $1 != 124 ]] || die "the other kernel was not done after $seconds s and was ended"
  die "the other kernel ended (exit code $1) before the command did"
}

case ${1:-} in
  -h | --help | '') usage; exit ;;
  --unless)
    kind=${2:?usage: run.sh --unless KIND CMD...}
    shift 2
    if has_tunnels "$kind"; then exec "$@"; fi
    say "this kernel has no tunnels of the kind $kind: starting one that has"
    ;;
esac
run_there "$@"
