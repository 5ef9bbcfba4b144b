#!/usr/bin/env bash
# Starts a command on every worker, detached; each worker keeps a log.
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
DESCRIPTION="run.sh [options] -- COMMAND ...: start COMMAND on every worker, in ~/$REMOTE_CODE, detached.
Use logs.sh, status.sh and stop.sh to follow and stop it."
ACCEPTED="project zone name internal-ips accelerator-type job secrets flags"
parse_options "$@"
[ ${#COMMAND[@]} -gt 0 ] || fail $EXIT_USAGE "no command; for example: run.sh -- rlaif run CONFIG --out /mnt/rlaif/demo"

check_secrets "${COMMAND[@]}"
lines=$(secret_lines)
count=$(worker_count)
if [ -n "$RLAIF_SECRETS" ]; then
  size=$(printf '%s\n' "$lines" | wc -c | tr -d ' ')
  for ((worker = 0; worker < count; worker++)); do # one worker at a time, because each reads standard input
    on_worker "$worker" "$(worker_command secrets "$RLAIF_JOB" "$size")" <<<"$lines"
  done
fi
on_worker all "$(worker_command start "$RLAIF_JOB" "$(flag_set)" "$RLAIF_SECRETS" -- "${COMMAND[@]}")"
