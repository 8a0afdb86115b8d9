# shellcheck shell=bash
# What it takes to start user-mode Linux on any CPU; sourced after e2e/cluster/lib.sh.

xstate_source=$(dirname "${BASH_SOURCE[0]}")/xstate.c

build_xstate() { # ENTRY_DIR
  cc -O2 -Wall -Werror -shared -fPIC -o "$1/xstate.so" "$xstate_source"
}

# Prints the library that linux.uml has to be started with (LD_PRELOAD); xstate.c says why.
uml_library() {
  local entry
  entry=$(cache_entry uml "$(hash_of "$xstate_source" "$(cc --version)")" build_xstate)
  echo "$entry/xstate.so"
}
