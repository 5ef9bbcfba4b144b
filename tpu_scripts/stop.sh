#!/usr/bin/env bash
# Stops the job on every worker. The TPU keeps running, and you keep paying for it.
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
DESCRIPTION="stop.sh: send SIGTERM to the job on every worker, and kill it after --grace seconds. You still pay for the TPU."
ACCEPTED="project zone name internal-ips job grace"
parse_options "$@"
on_worker all "$(worker_command stop "$RLAIF_JOB" "$RLAIF_GRACE")"
