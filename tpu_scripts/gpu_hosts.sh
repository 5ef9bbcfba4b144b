#!/usr/bin/env bash
# Runs a job on GPU hosts over ssh, without a scheduler: one process per host; the first host is the coordinator.
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
DESCRIPTION="gpu_hosts.sh sync|setup|run|status|logs|stop --hosts gpu0,gpu1 [options] [-- COMMAND ...]: a job on GPU hosts.
Every process gets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and sees all GPUs of its host."
ACCEPTED="hosts port job extra python mount-command secrets flags lines grace"
: "${RLAIF_EXTRA:=cuda}" "${RLAIF_FLAGS:=h100}"
verb=${1:-}
case $verb in
  sync | setup | run | status | logs | stop) shift ;;
  -h | --help) ;;
  *) fail $EXIT_USAGE "expected sync, setup, run, status, logs or stop, found '$verb'" ;;
esac
parse_options "$@"
[ "$verb" != run ] || [ ${#COMMAND[@]} -gt 0 ] || fail $EXIT_USAGE "run needs a command after --"
[ ${#COMMAND[@]} -eq 0 ] || check_secrets "${COMMAND[@]}"
IFS=, read -r -a hosts <<<"$RLAIF_HOSTS"

on_host() { run ssh -o BatchMode=yes "$1" "$2"; } # BatchMode: ssh fails instead of asking a question

on_hosts() { # COMMAND: runs on all hosts at once; fails if it fails on any of them
  local host jobs=() failed=0 job
  for host in "${hosts[@]}"; do
    on_host "$host" "$1" </dev/null &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job" || failed=1; done
  return $failed
}

sync_hosts() {
  local folder host
  folder=$(mktemp -d)
  archive_code "$folder/rlaif_code.tar.gz"
  for host in "${hosts[@]}"; do run scp -q "$folder/rlaif_code.tar.gz" "$host:rlaif_code.tar.gz"; done
  rm -rf "$folder"
  on_hosts "$UNPACK"
}

start_hosts() {
  local lines size index
  lines=$(secret_lines)
  size=$(printf '%s\n' "$lines" | wc -c | tr -d ' ')
  for index in "${!hosts[@]}"; do
    [ -z "$RLAIF_SECRETS" ] || on_host "${hosts[index]}" "$(worker_command secrets "$RLAIF_JOB" "$size")" <<<"$lines"
  done
  for index in "${!hosts[@]}"; do
    on_host "${hosts[index]}" "$(worker_command start "$RLAIF_JOB" "$RLAIF_FLAGS" "$RLAIF_SECRETS" \
      JAX_COORDINATOR_ADDRESS="${hosts[0]#*@}:$RLAIF_PORT" JAX_NUM_PROCESSES="${#hosts[@]}" JAX_PROCESS_ID="$index" \
      -- "${COMMAND[@]}")" </dev/null
  done
}

case $verb in
  sync) sync_hosts ;;
  setup)
    sync_hosts
    on_hosts "$(worker_command setup "$RLAIF_EXTRA" "$RLAIF_PYTHON" "$RLAIF_MOUNT")"
    ;;
  run) start_hosts ;;
  status) on_hosts "$(worker_command status "$RLAIF_JOB")" ;;
  stop) on_hosts "$(worker_command stop "$RLAIF_JOB" "$RLAIF_GRACE")" ;;
  logs)
    for host in "${hosts[@]}"; do
      on_host "$host" "$(worker_command log "$RLAIF_JOB" "$RLAIF_LINES")" </dev/null | sed "s/^/[$host] /"
    done
    ;;
esac
