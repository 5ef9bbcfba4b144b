#!/usr/bin/env bash
# Deletes the TPU and its request.
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
DESCRIPTION="delete.sh: delete the TPU with its disks, and its queued resource. What is not on a shared folder is lost."
ACCEPTED="project zone name yes"
parse_options "$@"

if [ -z "$RLAIF_YES" ] && ! is_dry; then
  [ -t 0 ] || fail $EXIT_USAGE "this deletes $RLAIF_NAME and its disks; say --yes where nobody can be asked"
  read -r -p "Delete $RLAIF_NAME in $RLAIF_ZONE and its disks? Type its name: " answer
  [ "$answer" = "$RLAIF_NAME" ] || fail 1 "not deleted"
fi
# --force: the nodes first, then the request.
tpus queued-resources delete "$RLAIF_NAME" --force
is_dry || say "$RLAIF_NAME is deleted"
