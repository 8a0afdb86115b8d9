#!/usr/bin/env bash
# Checks that this machine has what targets and stages need (hack/requirements): installs missing packages where that is allowed,
# else names everything that is missing.
#
#   hack/require.sh NAME...           a target of the Makefile, lab-MODE, lab-SCENARIO, stage-STAGE or a group of hack/requirements
#   hack/require.sh --list NAME...    prints the packages of Debian that the names may need on any machine
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1:-} in
  '' | -h | --help) usage ;;
  --list) shift && list_packages "$@" ;;
  *) require "$@" ;;
esac
