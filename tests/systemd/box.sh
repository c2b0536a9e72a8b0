#!/usr/bin/env bash
# What runs in the namespaces of a box: one file of checks, with the functions of lib.sh. Called by run.sh only.
set -uo pipefail
[[ ${BATON_BOX_CGROUPS-} ]] || { echo "error: run.sh calls this" >&2 && exit 2; }
# shellcheck source=lib.sh
. tests/systemd/lib.sh

case $1 in
  --try) boot_box ;;
  --shell)
    box_with_package
    echo "a shell in the box; exit ends it"
    nsenter --target "$BOX_LEADER" "${ENTER[@]}" TERM="${TERM:-dumb}" bash -i
    ;;
  *)
    # shellcheck source=/dev/null
    . "$1"
    ((BOX_FAILED == 0)) || show_journal
    ((BOX_FAILED == 0))
    ;;
esac
