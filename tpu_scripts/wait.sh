#!/usr/bin/env bash
# Waits until the queued resource is ACTIVE.
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
DESCRIPTION="wait.sh: wait until the TPU is ACTIVE.
Exit code 3: the request failed or was suspended (delete it, then create it again); 4: no such request;
5: gcloud failed to report the state ten times in a row."
ACCEPTED="project zone name poll timeout"
parse_options "$@"

began=$SECONDS unknown=0 before=
while :; do
  state=$(queued_state)
  is_dry && exit 0
  [ "$state" = "$before" ] || say "$RLAIF_NAME: $state"
  before=$state
  [ "$state" = UNKNOWN ] && unknown=$((unknown + 1)) || unknown=0
  case $state in
    ACTIVE) exit 0 ;;
    NONE) fail $EXIT_LOST "there is no queued resource $RLAIF_NAME in $RLAIF_ZONE; run create.sh first" ;;
    FAILED | SUSPENDING | SUSPENDED)
      tpus queued-resources describe "$RLAIF_NAME" --format='yaml(state)' >&2 || true
      fail $EXIT_CAPACITY "the request is $state: there was no capacity, or the TPU was preempted. Run delete.sh, then create.sh"
      ;;
  esac
  [ "$unknown" -lt 10 ] || fail $EXIT_UNKNOWN "gcloud failed to report the state ten times in a row, see above"
  [ $((SECONDS - began)) -lt "$RLAIF_TIMEOUT" ] || fail 1 "still $state after $RLAIF_TIMEOUT s; the request stays in the queue"
  sleep "$RLAIF_POLL"
done
