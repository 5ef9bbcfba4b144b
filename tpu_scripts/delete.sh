#!/usr/bin/env bash
# Deletes the TPU and its request.
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
DESCRIPTION="delete.sh: delete the TPU with its disks, and its queued resource. Files that are not on a shared folder are lost."
ACCEPTED="project zone name yes"
parse_options "$@"

if [ "$(queued_state)" = NONE ]; then
  node=$(node_state)
  [ "$node" = NONE ] || fail 1 "there is no request $RLAIF_NAME in $RLAIF_ZONE, but gcloud reports a TPU of that name $node; \
if it is yours, delete it: gcloud compute tpus tpu-vm delete $RLAIF_NAME --zone $RLAIF_ZONE --project $RLAIF_PROJECT"
  say "nothing to delete: there is no $RLAIF_NAME in $RLAIF_ZONE"
  exit 0
fi
if [ -z "$RLAIF_YES" ] && ! is_dry; then
  [ -t 0 ] || fail $EXIT_USAGE "this deletes $RLAIF_NAME and its disks; without a terminal to ask, pass --yes"
  read -r -p "Delete $RLAIF_NAME in $RLAIF_ZONE and its disks? Type its name: " answer
  [ "$answer" = "$RLAIF_NAME" ] || fail 1 "not deleted"
fi
# --force: the nodes first, then the request.
tpus queued-resources delete "$RLAIF_NAME" --force ||
  fail 1 "$RLAIF_NAME is not deleted, see above: you still pay for it; run delete.sh again"
is_dry || say "$RLAIF_NAME is deleted"
