#!/bin/bash
# The first process on the other kernel, started by run.sh; NETWEFT_JOB comes from the kernel's command line and says what
# to run. The root file system is the machine's own, mounted read-only: all that is written lies in memory.
# If this fails the kernel panics, which is what run.sh looks for.
set -euo pipefail
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
# /dev is there already, made by the kernel.
# Before /run is covered: the job may lie there.
command=() last_words=''
# shellcheck source=/dev/null
source "$NETWEFT_JOB"
mkdir -p /dev/shm
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
# Not below /run, which the lab's nodes cover with their own.
mkdir -m 1777 /dev/shm/tmp
export TMPDIR=/dev/shm/tmp NETWEFT_CACHE=/dev/shm/cache
# The kernel's own modules. A machine whose kernel has none may have no /lib/modules to cover.
mkdir -p /dev/shm/kernel/lib
ln -s /usr/lib/uml/modules /dev/shm/kernel/lib/modules
printf '#!/bin/sh\nexec modprobe --dirname /dev/shm/kernel "$@"\n' >/dev/shm/kernel/modprobe
chmod +x /dev/shm/kernel/modprobe
echo /dev/shm/kernel/modprobe >/proc/sys/kernel/modprobe
# What a node has at boot. Everything else is loaded by the kernel when it is first asked for.
/dev/shm/kernel/modprobe -a ipv6 br_netfilter
ip link set lo up

exec {line}>/dev/ttyS0
stty -F /dev/ttyS0 -opost # line ends as they are
code=0
"${command[@]}" </dev/null >&"$line" 2>&1 || code=$?
echo "$last_words $code" >&"$line"
# Power off.
echo o >/proc/sysrq-trigger
sleep infinity
