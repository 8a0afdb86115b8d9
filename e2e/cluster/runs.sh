# shellcheck shell=bash
# Runs and their leftovers, a part of lib.sh, which says what a run is and how its log looks.

process_start_time() { # PID -> field 22 of its stat, or nothing
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  # The second field is the command in parentheses and may hold spaces: count from behind the last one.
  stat=${stat##*) }
  # shellcheck disable=SC2086 # to be split
  set -- $stat
  [[ $1 == Z ]] || echo "${20}" # a zombie has ended
}

# Makes this process the owner of run NAME. RUN_LOCK is the descriptor that a long-lived child must inherit.
run_begin() { # NAME
  RUN_DIR=$NETWEFT_CACHE/runs/$1
  mkdir -p "$RUN_DIR"
  exec {RUN_LOCK}>>"$RUN_DIR/lock"
  flock -w 5 "$RUN_LOCK" || die "the run $1 is alive already: something still holds $RUN_DIR/lock"
  # The lock was free, so whatever the log lists was left by a killed run of this name.
  reap_log "$RUN_DIR/log"
}

run_log() { # KIND VALUE...
  echo "$*" >>"$RUN_DIR/log"
}

run_is_alive() { # NAME
  [[ -e $NETWEFT_CACHE/runs/$1/lock ]] || return 1
  ! flock -n "$NETWEFT_CACHE/runs/$1/lock" true
}

# Takes away everything that run NAME made, alive or not.
run_end() { # NAME
  local dir=$NETWEFT_CACHE/runs/$1
  [[ -d $dir ]] || return 0
  reap_log "$dir/log"
}

reap_dead_runs() {
  local dir lock
  for dir in "$NETWEFT_CACHE"/runs/*/; do
    [[ -e $dir/lock && -s $dir/log ]] || continue
    exec {lock}>>"$dir/lock"
    if flock -n "$lock"; then
      say "take away what the dead run $(basename "$dir") left"
      reap_log "$dir/log"
    fi
    exec {lock}>&-
  done
}

# Removes FILE when everything in its list is gone. The lock stays: another process may be about to acquire it.
reap_log() { # FILE
  local kind first second
  [[ -s $1 ]] || return 0
  while read -r kind first second; do
    reap_one "$kind" "$first" "$second"
  done < <(tac "$1")
  rm -f "$1"
}

reap_one() { # KIND VALUE...
  case $1 in
    process) stop_process "$2" "$3" ;;
    netns) [[ ! -e /run/netns/$2 ]] || ip netns delete "$2" || say "could not delete the network namespace $2" ;;
    mount) ! mountpoint -q "$2" || umount -l "$2" || say "could not unmount $2" ;;
    container) docker rm -fv "$2" >/dev/null 2>&1 || true ;;
    link) ! ip link show dev "$2" >/dev/null 2>&1 || ip link delete dev "$2" || say "could not delete the link $2" ;;
    cgroup) remove_cgroup "$2" ;;
    *) say "do not know how to take away '$*'" ;;
  esac
}

remove_cgroup() { # NAME; in every hierarchy, inner ones first; the processes in it are gone
  local path
  for path in /sys/fs/cgroup/"$1" /sys/fs/cgroup/*/"$1"; do
    [[ ! -d $path ]] || find "$path" -depth -type d -exec rmdir {} + 2>/dev/null || say "could not remove all of $path"
  done
}

stop_process() { # PID STARTTIME; SIGTERM, and SIGKILL ten seconds later
  local tenths
  for ((tenths = 0; tenths < 130; tenths++)); do
    [[ $(process_start_time "$1") == "$2" ]] || return 0
    case $tenths in
      0) kill -TERM "$1" 2>/dev/null || true ;;
      100) kill -KILL "$1" 2>/dev/null || true ;;
    esac
    sleep 0.1
  done
  say "process $1 does not end"
}
