#!/usr/bin/env bash
# BIRD 2 as Debian has it, for a machine whose own release has none or an older one:
#
#   bird.sh          prints a folder with bird and birdc, ready for PATH
#   bird.sh --root   prints the file system that they come from: what a container of BIRD needs, and nothing else
#   bird.sh --alone  prints a folder with bird, its libraries (lib) and their linker (ld.so), to be started by that in any file system
#
# The release that this Debian is does not matter: the programs bring their libraries and are started by their own linker.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
source "$here/lib.sh"
# shellcheck source=versions.sh
source "$here/versions.sh"
# shellcheck source=archive.sh
source "$here/archive.sh"

start_program() { # prints a script that starts the program of the same name in the folder system
  cat <<'PROGRAM'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
set -- "$here/../system/usr/sbin/${0##*/}" "$@"
for libraries in "$here"/../system/usr/lib/*-linux-gnu*/; do
  exec "$libraries"/ld-linux-*.so.* --library-path "$libraries" "$@"
done
PROGRAM
}

build_bird() { # ENTRY_DIR
  local program version
  require debian-root
  with_heartbeat "fetch BIRD from Debian's $BIRD_DEBIAN_RELEASE" \
    debian_root "$1/system" extract "$BIRD_PACKAGES" "$BIRD_DEBIAN_RELEASE"
  mkdir "$1/bin"
  for program in bird birdc; do
    start_program >"$1/bin/$program"
    chmod 755 "$1/bin/$program"
  done
  stand_alone "$1/system" "$1/alone"
  version=$(bird_version "$1/bin/bird")
  at_least "$version" "$BIRD_VERSION_MIN" ||
    die "the mirror's $BIRD_DEBIAN_RELEASE has BIRD '$version', and netweft needs $BIRD_VERSION_MIN or newer"
}

stand_alone() { # ROOT DIRECTORY
  local libraries linker
  libraries=$(echo "$1"/usr/lib/*-linux-gnu*)
  linker=$(echo "$libraries"/ld-linux-*.so.*)
  mkdir -p "$2/lib"
  cp "$1/usr/sbin/bird" "$2/"
  cp -L "$linker" "$2/ld.so"
  "$linker" --library-path "$libraries" --list "$1/usr/sbin/bird" | awk '$2 == "=>" { print $3 }' |
    while read -r library; do cp -L "$library" "$2/lib/"; done
}

bird_version() { # PROGRAM -> MAJOR.MINOR[.PATCH]
  "$1" --version 2>&1 | sed -nE 's/^BIRD version ([0-9.]+).*/\1/p'
}

case ${1:-} in
  '') part=bin ;;
  --root) part=system ;;
  --alone) part=alone ;;
  -h | --help) usage; exit ;;
  *) usage; exit 1 ;;
esac
entry=$(cache_entry bird "$(hash_of "$(declare -f start_program stand_alone build_bird)" "$here/archive.sh" "$BIRD_DEBIAN_RELEASE" \
  "$BIRD_PACKAGES" "$BIRD_VERSION_MIN")" build_bird)
echo "$entry/$part"
