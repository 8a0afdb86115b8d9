#!/usr/bin/env bash
# The container engine of the test cluster:
#
#   engine.sh up      use the engine that `docker info` reaches; where there is none, start a private dockerd
#   engine.sh down    end the private dockerd with all that runs in it (an engine that was there before is left alone)
#   engine.sh env     print shell variables that say how to reach it: eval "$(engine.sh env)"
#
# Variables that env prints:
#   NETWEFT_ENGINE         private or own: "own" is the machine's own engine
#   NETWEFT_ENGINE_NETNS   network namespace where the private one's addresses are reachable; empty for the machine's own
#   NETWEFT_ENGINE_CAPS    full, or limited where privileged containers lack CAP_SYS_RESOURCE
#   DOCKER_HOST, DOCKER_BUILDKIT, and PATH with the docker client that fits first
#
# The private engine has a network namespace without any way out, a PID namespace (whatever runs in it ends with it) and
# a mount namespace (nothing stays mounted). It outlives the command that started it and holds the lock of its run, see
# lib.sh. Its images stay in $NETWEFT_CACHE/docker; its containers and volumes never outlive it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
source "$here/lib.sh"

# One private engine per cache directory.
engine=netweft-engine-$(hash_of "$NETWEFT_CACHE" | cut -c1-6)
run_dir=/run/$engine # socket and state: short paths, as the name of a unix socket may have 107 characters
data_dir=$NETWEFT_CACHE/docker
socket=unix://$run_dir/docker.sock

private_is_up() { [[ -S $run_dir/docker.sock ]] && DOCKER_HOST=$socket answers; }
answers() { timeout 15 docker info >/dev/null 2>&1; }

has_sys_resource() { # the bounding set of this shell; capability 24
  local bounding
  bounding=$(awk '$1 == "CapBnd:" { print $2 }' /proc/self/status)
  (((0x$bounding >> 24) & 1))
}

# ---- start

start_private() {
  require private-engine
  # Where a service manager runs, installing the package has started the machine's own engine.
  if answers; then return; fi
  need_free_space
  reap_dead_runs
  # A run of this name that is alive, though its engine does not answer, hangs.
  run_end "$engine"
  run_begin "$engine"
  run_log cgroup "$engine"
  run_log netns "$engine"
  # The log of the run may have been deleted with the cache. Only this script uses the name.
  [[ ! -e /run/netns/$engine ]] || ip netns delete "$engine"
  ip netns add "$engine"
  ip -n "$engine" link set lo up
  calm_old_containers
  with_heartbeat 'start a private dockerd' launch
  DOCKER_HOST=$socket remove_old_containers
}

# dockerd restarts the containers that ran when it was killed, before the API accepts a request.
calm_old_containers() {
  local file
  for file in "$data_dir"/containers/*/hostconfig.json; do
    [[ -e $file ]] || continue
    jq -c '.RestartPolicy.Name = "no"' "$file" >"$file.new" && mv "$file.new" "$file"
  done
}

remove_old_containers() {
  docker ps -aq | xargs -r docker rm -fv >/dev/null
  docker volume ls -q | xargs -r docker volume rm -f >/dev/null
  # A network of a killed run keeps its bridge's name and addresses.
  docker network prune -f >/dev/null
}

dockerd_command() { # prints the words, one a line
  printf '%s\n' dockerd --host "$socket" --pidfile "$run_dir/docker.pid" --exec-root "$run_dir/exec" \
    --data-root "$data_dir" --config-file "$run_dir/daemon.json" --log-level warn \
    --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$engine"
  if ! has_sys_resource; then
    printf '%s\n' --add-runtime "shim=$run_dir/bin/oci-runtime-shim" --default-runtime shim
  fi
}

# A machine may have another docker client first on PATH; BuildKit works only with the one that came with dockerd.
fitting_client() {
  local client version
  version=$(dockerd --version | grep -o '[0-9]*\.[0-9]*\.[0-9]*' | head -n 1)
  while read -r client; do
    if [[ $("$client" --version) == *" $version"* ]]; then
      echo "$client"
      return
    fi
  done < <(type -aP docker)
  command -v docker
}

launch() {
  local words=() outer inner tries
  rm -rf "$run_dir"
  mkdir -p "$run_dir/bin" "$data_dir"
  ln -s "$(fitting_client)" "$run_dir/bin/docker"
  cp "$here/oci-runtime-shim" "$run_dir/bin/" # the checkout may move while the engine runs
  echo '{}' >"$run_dir/daemon.json" # the machine's own /etc/docker/daemon.json is not for this one
  mapfile -t words < <(dockerd_command)
  (
    close_descriptors_but "$RUN_LOCK"
    # Not `ip netns exec`: that mounts a fresh /sys, which hides the cgroups. The first process of the PID namespace is
    # docker-init, which passes signals on and reaps orphans; it dies with unshare, and the namespace with it.
    exec setsid nsenter --net="/run/netns/$engine" unshare --mount --pid --fork --kill-child=KILL --mount-proc \
      docker-init -- "${words[@]}" </dev/null >"$RUN_DIR/dockerd.log" 2>&1
  ) &
  outer=$!
  run_log process "$outer" "$(process_start_time "$outer")"
  for ((tries = 0; tries < 300; tries++)); do
    if DOCKER_HOST=$socket answers; then break; fi
    [[ -n $(process_start_time "$outer") ]] || break
    sleep 0.2
  done
  if ! DOCKER_HOST=$socket answers; then
    tail -n 20 "$RUN_DIR/dockerd.log"
    die "dockerd did not come up; its log is $RUN_DIR/dockerd.log"
  fi
  # Logged last, so it gets the signal first and ends cleanly.
  inner=$(cat "/proc/$outer/task/$outer/children")
  run_log process "${inner// /}" "$(process_start_time "${inner// /}")"
}

close_descriptors_but() { # FD; of the calling subshell
  local path fd
  for path in "/proc/$BASHPID/fd"/*; do
    fd=${path##*/}
    if ((fd > 2 && fd != $1)); then eval "exec $fd>&-"; fi
  done
}

# ---- the commands

up() {
  local lock
  if private_is_up || answers; then return; fi
  # Two clusters may come up at the same time.
  exec {lock}>"$NETWEFT_CACHE/engine.lock"
  flock "$lock"
  private_is_up || start_private
}

down() {
  if private_is_up; then
    DOCKER_HOST=$socket remove_old_containers || say "the private engine could not remove its containers; it ends with them"
  fi
  run_end "$engine"
  rm -rf "$run_dir"
}

env_lines() {
  local caps=limited
  if has_sys_resource; then caps=full; fi
  if private_is_up; then
    printf 'export NETWEFT_ENGINE=private NETWEFT_ENGINE_NETNS=%q DOCKER_HOST=%q DOCKER_BUILDKIT=1\n' "$engine" "$socket"
    # shellcheck disable=SC2016 # PATH is the reader's
    printf 'export NETWEFT_ENGINE_CAPS=%s PATH=%q:"$PATH"\n' "$caps" "$run_dir/bin"
  elif answers; then
    echo "export NETWEFT_ENGINE=own NETWEFT_ENGINE_NETNS='' NETWEFT_ENGINE_CAPS=$caps DOCKER_BUILDKIT=1"
  else
    die "no container engine answers; start one with e2e/cluster/engine.sh up"
  fi
}

case ${1:-} in
  up) up ;;
  down) down ;;
  env) env_lines ;;
  -h | --help) usage ;;
  *) usage; exit 1 ;;
esac
