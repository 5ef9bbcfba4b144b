#!/usr/bin/env bash
# Keeps a job going until it has ended: gets the TPU, prepares it, starts the job, and begins again after a preemption.
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
DESCRIPTION="supervise.sh [options] -- COMMAND ...: create, wait, setup and run until COMMAND has succeeded on every worker.
The same command resumes from its newest checkpoint, so --out must lie on a shared folder (--mount-command)."
ACCEPTED="project zone name accelerator-type runtime-version capacity valid-until service-account network subnetwork \
internal-ips attempts pause poll timeout extra python mount-command job secrets flags grace max-restarts delete-when-done"
: "${RLAIF_ATTEMPTS:=0}" # a supervisor asks until there is capacity
parse_options "$@"
[ ${#COMMAND[@]} -gt 0 ] || fail $EXIT_USAGE "no command; for example: supervise.sh -- rlaif run CONFIG --out /mnt/rlaif/demo"
refuse_secrets "${COMMAND[@]}"
secret_lines >/dev/null # a missing one is better found now than after hours in the queue

finish() { # CODE
  if [ -n "$RLAIF_DELETE_WHEN_DONE" ]; then
    "$TPU_SCRIPTS/delete.sh" --yes
  else
    is_dry || say "the TPU stays, and costs until: delete.sh --name $RLAIF_NAME --zone $RLAIF_ZONE"
  fi
  exit "$1"
}

# Brings the TPU to ACTIVE: asks, waits, and asks again for what was taken back. Fails for good on anything but capacity.
get_tpu() {
  local state code
  while :; do
    state=$(queued_state)
    case $state in
      NONE) "$TPU_SCRIPTS/create.sh" ;;
      FAILED | SUSPENDING | SUSPENDED) "$TPU_SCRIPTS/delete.sh" --yes && "$TPU_SCRIPTS/create.sh" ;;
    esac
    code=0
    "$TPU_SCRIPTS/wait.sh" || code=$?
    [ "$code" -ne 0 ] || return 0
    [ "$code" -eq $EXIT_CAPACITY ] || [ "$code" -eq $EXIT_LOST ] || exit "$code"
    say "the request came to nothing; again in $RLAIF_PAUSE s"
    sleep "$RLAIF_PAUSE"
  done
}

# Of the workers' exit codes the one that says most: 2 (a mistake), then any death, then 75 (told to stop, and saved).
worst() { # CODES, one a line
  printf '%s\n' "$1" | grep -x 2 || printf '%s\n' "$1" | grep -vx 75 || echo 75
}

# One word on the job: preempted, unreachable, running, done, or failed CODE.
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
    echo unreachable
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

# Watches the job; returns 0 if it is to be started again on this TPU, 1 if the TPU is gone. Ends the script at its end.
watch_job() {
  local seen
  while :; do
    seen=$(look)
    case $seen in
      done) say "the job has succeeded on every worker" && finish 0 ;;
      preempted) say "preempted" && return 1 ;;
      "failed 2") say "the command was refused (exit code 2): see logs.sh" && finish 2 ;;
      "failed 75") # a notice from the host, say: no fault of the job's
        say "the job was told to stop and has saved; it starts again"
        "$TPU_SCRIPTS/stop.sh"
        return 0
        ;;
      failed*)
        restarts=$((restarts + 1))
        if [ "$restarts" -gt "$RLAIF_MAX_RESTARTS" ]; then
          say "the job has died $restarts times (last: ${seen#failed }): see logs.sh"
          finish 1
        fi
        say "the job died (${seen#failed }); restart $restarts of $RLAIF_MAX_RESTARTS"
        "$TPU_SCRIPTS/stop.sh" # one dead process leaves the others waiting for it
        return 0
        ;;
      unreachable) say "workers do not answer; looking again in $RLAIF_POLL s" ;;
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
  # Not under a job that another supervisor has left running. A failure: preempted in the midst of it, or a mistake.
  if [ "$(look)" != running ] && ! "$TPU_SCRIPTS/setup.sh"; then
    restarts=$((restarts + 1))
    [ "$restarts" -le "$RLAIF_MAX_RESTARTS" ] || { say "setup has failed, see above" && finish 1; }
    [ "$(node_state)" = READY ] || "$TPU_SCRIPTS/delete.sh" --yes || true
    sleep "$RLAIF_POLL"
    continue
  fi
  while :; do
    [ "$(look)" = running ] || "$TPU_SCRIPTS/run.sh" -- "${COMMAND[@]}" || say "the job did not start everywhere"
    watch_job || break
  done
  "$TPU_SCRIPTS/delete.sh" --yes || true # a preempted TPU cannot be restarted, and its name is taken until then
done
