#!/usr/bin/env bash
# Shows or downloads the job's log of each worker.
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
DESCRIPTION="logs.sh: print the end of every worker's log; --follow: print one worker's log live; --fetch FOLDER: save the full logs."
ACCEPTED="project zone name internal-ips job worker lines follow fetch"
parse_options "$@"

if [ -n "$RLAIF_FOLLOW" ]; then
  worker=$RLAIF_WORKER
  [ "$worker" != all ] || worker=0
  on_worker "$worker" "$(worker_command follow "$RLAIF_JOB" "$RLAIF_LINES")" </dev/null
  exit
fi
if [ "$RLAIF_WORKER" = all ]; then
  count=$(worker_count)
  workers=$(seq 0 $((count - 1)))
else
  workers=$RLAIF_WORKER
fi
is_dry || [ -z "$RLAIF_FETCH" ] || mkdir -p "$RLAIF_FETCH"
for worker in $workers; do
  if [ -z "$RLAIF_FETCH" ]; then
    on_worker "$worker" "$(worker_command log "$RLAIF_JOB" "$RLAIF_LINES")" </dev/null | sed "s/^/[worker $worker] /"
  elif is_dry; then
    on_worker "$worker" "$(worker_command log "$RLAIF_JOB" all)" </dev/null
  else
    on_worker "$worker" "$(worker_command log "$RLAIF_JOB" all)" </dev/null >"$RLAIF_FETCH/worker-$worker.log"
    say "$RLAIF_FETCH/worker-$worker.log"
  fi
done
