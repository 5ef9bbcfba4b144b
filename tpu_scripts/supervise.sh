#!/usr/bin/env bash
# Runs a job to its end: requests the TPU, prepares it, starts the job, and does it again after a preemption.
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
DESCRIPTION="supervise.sh [options] -- COMMAND ...: create, wait, setup and run until COMMAND has succeeded on every worker.
COMMAND resumes from its newest checkpoint, so --out must be on a shared folder (--mount-command)."
ACCEPTED="project zone name accelerator-type runtime-version capacity valid-until service-account network subnetwork \
internal-ips attempts pause poll timeout extra python mount-command job secrets flags grace max-restarts lost-after delete-when-done"
: "${RLAIF_ATTEMPTS:=0}" # a supervisor tries until there is capacity
parse_options "$@"
[ ${#COMMAND[@]} -gt 0 ] || fail $EXIT_USAGE "no command; for example: supervise.sh -- rlaif run CONFIG --out /mnt/rlaif/demo"
check_secrets "${COMMAND[@]}" # now, and not after hours in the queue
[ -n "$RLAIF_MOUNT" ] ||
  say "note: without --mount-command the run's --out must be on a folder that every worker has and that outlives the TPU"

# Ends the script. It is also called where `set -e` is off (watch_job || break), so it checks every failure itself.
finish() { # CODE
  local attempt delete="tpu_scripts/delete.sh --project $RLAIF_PROJECT --zone $RLAIF_ZONE --name $RLAIF_NAME"
  if [ -z "$RLAIF_DELETE_WHEN_DONE" ]; then
    is_dry || say "the TPU, or the request for it, is not deleted and costs until: $delete"
    exit "$1"
  fi
  for attempt in 1 2 3 4 5; do
    [ "$attempt" -eq 1 ] || sleep "$RLAIF_PAUSE"
    ! "$TPU_SCRIPTS/delete.sh" --yes || exit "$1" # it also succeeds if there is nothing to delete
    say "not deleted (attempt $attempt of 5)"
  done
  say "error: $RLAIF_NAME is NOT deleted: it costs money until this has succeeded: $delete"
  [ "$1" -eq 0 ] || exit "$1"
  exit 1
}

count_restart() { # WHY: ends the script if no restarts are left
  restarts=$((restarts + 1))
  if [ "$restarts" -gt "$RLAIF_MAX_RESTARTS" ]; then
    say "$1, and all $RLAIF_MAX_RESTARTS restarts are used up: see above, and logs.sh"
    finish 1
  fi
  say "$1; restart $restarts of $RLAIF_MAX_RESTARTS"
}

# If create.sh fails, ends the script; unless a request exists all the same (its answer got lost, or another supervisor made
# it): then it uses that one.
ask_for_tpu() {
  local code=0
  "$TPU_SCRIPTS/create.sh" || code=$?
  [ "$code" -ne 0 ] || return 0
  case $(queued_state) in NONE | UNKNOWN) finish "$code" ;; esac
}

# Returns when the TPU is ACTIVE: requests it, waits, and requests it again after a preemption or without capacity. Ends the
# script on any other failure.
get_tpu() {
  local code left began=$SECONDS
  while :; do
    case $(queued_state) in
      NONE) ask_for_tpu && began=$SECONDS ;;
      FAILED | SUSPENDING | SUSPENDED) "$TPU_SCRIPTS/delete.sh" --yes && ask_for_tpu && began=$SECONDS ;;
    esac
    left=$((began + RLAIF_TIMEOUT - SECONDS)) code=0
    [ "$left" -gt 0 ] || left=0
    "$TPU_SCRIPTS/wait.sh" --timeout "$left" || code=$?
    case $code in
      0) return 0 ;;
      "$EXIT_CAPACITY" | "$EXIT_LOST") say "the request failed; next attempt in $RLAIF_PAUSE s" ;;
      "$EXIT_UNKNOWN") say "gcloud does not answer (no network?); next attempt in $RLAIF_PAUSE s" ;;
      *) finish "$code" ;; # finish may delete the request; if it stayed, it would cost as soon as it is granted
    esac
    sleep "$RLAIF_PAUSE"
  done
}

# The most important of the workers' exit codes: 2 (a mistake), then any other failure, then 75 (stopped by a signal, saved).
worst() { # CODES, one a line
  printf '%s\n' "$1" | grep -x 2 || printf '%s\n' "$1" | grep -vx 75 || echo 75
}

# Prints the job's state: preempted, unknown (gcloud does not answer: no network?), unreachable, running, done, or failed CODE.
look() {
  local queued node lines codes
  queued=$(queued_state)
  node=$(node_state)
  case $queued in
    NONE | FAILED | SUSPENDING | SUSPENDED) echo preempted && return ;;
  esac
  case $node in
    NONE | PREEMPTED | TERMINATED | STOPPING | STOPPED | DELETING) echo preempted && return ;;
  esac
  if ! lines=$(on_worker all "$(worker_command status "$RLAIF_JOB")" 2>"$errors"); then
    cat "$errors" >&2
    case $queued,$node in *UNKNOWN*) echo unknown ;; *) echo unreachable ;; esac
    return
  fi
  codes=$(printf '%s\n' "$lines" | sed -n 's/^rlaif-worker: exited \([0-9]*\)$/\1/p' | grep -vx 0 || true)
  if [ -n "$codes" ]; then
    echo "failed $(worst "$codes" | head -n 1)"
  elif printf '%s\n' "$lines" | grep -qE '^rlaif-worker: (lost|none)$'; then
    echo "failed lost"
  elif printf '%s\n' "$lines" | grep -qx 'rlaif-worker: running'; then
    echo running
  elif printf '%s\n' "$lines" | grep -qx 'rlaif-worker: exited 0'; then
    echo "done"
  else
    echo unreachable
  fi
}

# Watches the job. Returns 0 to start it again on this TPU, 1 if the TPU is gone; ends the script when the job has ended.
watch_job() {
  local seen silent=
  while :; do
    seen=$(look)
    [ "$seen" = unreachable ] || silent=
    case $seen in
      done) say "the job has succeeded on every worker" && finish 0 ;;
      preempted) say "preempted" && return 1 ;;
      "failed 2") say "a mistake in config or command (exit code 2): see logs.sh" && finish 2 ;;
      "failed 75") # for example a maintenance notice on the host; not a failure of the job
        say "the job got a signal to stop and has saved; starting it again"
        "$TPU_SCRIPTS/stop.sh"
        return 0
        ;;
      failed*)
        count_restart "the job died (${seen#failed })"
        "$TPU_SCRIPTS/stop.sh" # the other processes would wait for the dead one
        return 0
        ;;
      unreachable)
        : "${silent:=$SECONDS}"
        if [ $((SECONDS - silent)) -ge "$RLAIF_LOST_AFTER" ]; then
          count_restart "workers have not answered for $RLAIF_LOST_AFTER s: the TPU counts as lost"
          return 1
        fi
        say "workers do not answer; checking again in $RLAIF_POLL s"
        ;;
      unknown) say "neither gcloud nor the workers answer; checking again in $RLAIF_POLL s" ;;
    esac
    sleep "$RLAIF_POLL"
  done
}

if is_dry; then
  "$TPU_SCRIPTS/create.sh"
  "$TPU_SCRIPTS/wait.sh"
  "$TPU_SCRIPTS/setup.sh"
  "$TPU_SCRIPTS/run.sh" -- "${COMMAND[@]}"
  queued_state
  node_state
  on_worker all "$(worker_command status "$RLAIF_JOB")"
  finish 0
fi
restarts=0
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
while :; do
  get_tpu
  # No setup if a job from another supervisor still runs. Setup fails on a mistake, or if the TPU is preempted meanwhile.
  if [ "$(look)" != running ] && ! "$TPU_SCRIPTS/setup.sh"; then
    count_restart "setup failed"
    case $(node_state) in READY | UNKNOWN) ;; *) "$TPU_SCRIPTS/delete.sh" --yes || true ;; esac
    sleep "$RLAIF_POLL"
    continue
  fi
  while :; do
    [ "$(look)" = running ] || "$TPU_SCRIPTS/run.sh" -- "${COMMAND[@]}" || say "the job did not start everywhere"
    watch_job || break
  done
  "$TPU_SCRIPTS/delete.sh" --yes || true # a preempted TPU cannot be restarted, and its name is taken until then
done
