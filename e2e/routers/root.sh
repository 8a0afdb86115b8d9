#!/usr/bin/env bash
# Prints a folder with the routers of the lab's fabric: FRR, BIRD and GoBGP of Debian. The script creates a missing folder.
#
# The folder is a small Debian in the cache; nothing is installed outside. The versions differ from those of the nodes, because
# operators of clusters do not choose the versions of routers.
set -euo pipefail
cluster=$(cd "$(dirname "${BASH_SOURCE[0]}")/../cluster" && pwd)
# shellcheck source=../cluster/lib.sh
source "$cluster/lib.sh"
# shellcheck source=../cluster/versions.sh
source "$cluster/versions.sh"
# shellcheck source=../cluster/archive.sh
source "$cluster/archive.sh"

packages=frr,bird2,gobgpd

make_root() { # ENTRY_DIR
  local root=$1/root program
  require debian-root
  with_heartbeat "unpack Debian's routers" debian_root "$root" minbase "$packages"
  # The package manager's own and what its scripts have written about this machine.
  rm -rf "$root"/var/{cache,lib}/apt "$root"/var/lib/dpkg "$root"/etc/{resolv.conf,hostname}
  for program in usr/lib/frr/{zebra,bgpd,bfdd} usr/bin/vtysh usr/sbin/{bird,birdc,gobgpd} usr/bin/gobgp; do
    [[ -x $root/$program || -x $root/${program/sbin/bin} ]] || die "Debian's routers lack $program"
  done
}

entry=$(cache_entry routers "$(hash_of "$DEBIAN_RELEASE" "$packages" "${BASH_SOURCE[0]}")" make_root)
echo "$entry/root"
