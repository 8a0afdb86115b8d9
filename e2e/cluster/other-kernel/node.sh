#!/bin/bash
# A worker on another kernel, after first.sh: what systemd and kind's entry point do on the other nodes.
# /machine: settings, hosts, kubeconfig, ca.crt, kubelet.yaml. Words go to the console, which is a file outside.
set -euo pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
name='' address=''
# shellcheck source=/dev/null
source /machine/settings

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount /dev/ubdb /var/lib/containerd
mount --make-rshared /
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for controller in cpu memory pids io; do
  echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || true
done
# The kubelet requires a clock speed, which this kernel does not report.
{ sed '/^$/d' /proc/cpuinfo; printf 'cpu MHz\t\t: 1000.000\n'; } >/run/cpuinfo
mount --bind /run/cpuinfo /proc/cpuinfo

# Modules that the kernel does not load on demand: a pod has no folder of modules.
modprobe -a overlay br_netfilter ipv6 ip_tables iptable_nat iptable_filter iptable_mangle ip6_tables ip6table_nat \
  ip6table_filter ip6table_mangle xt_MASQUERADE xt_conntrack xt_addrtype xt_comment xt_mark xt_nat xt_statistic nf_tables

hostname "$name"
cat /machine/hosts >/etc/hosts
ip link set lo up
ip address add "$address" dev vec0
ip link set vec0 up
ip route add default via "${address%.*.*}.0.1"
sysctl -qw net.ipv4.ip_forward=1

# iptables by nf_tables needs families that this kernel's lacks.
update-alternatives --set iptables /usr/sbin/iptables-legacy
update-alternatives --set ip6tables /usr/sbin/ip6tables-legacy

# The node image is made for a machine with systemd, and for a container whose /sys is not its own.
sed -i 's/SystemdCgroup = true/SystemdCgroup = false/; /base_runtime_spec/d' /etc/containerd/config.toml
containerd &
until ctr version >/dev/null 2>&1; do sleep 0.2; done

mkdir -p /etc/kubernetes/pki /etc/kubernetes/manifests
cp /machine/ca.crt /etc/kubernetes/pki/
kubelet --config=/machine/kubelet.yaml --kubeconfig=/machine/kubeconfig --hostname-override="$name" \
  --node-ip="${address%/*}" --node-labels=netweft-e2e/kernel=other &
wait -n
echo 'containerd or the kubelet has ended'
