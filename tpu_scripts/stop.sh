#!/usr/bin/env bash
# Stops the job on every worker; the TPU stays, and costs.
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
DESCRIPTION="stop.sh: ask the job on every worker to stop (SIGTERM), and kill it after --grace seconds. The TPU stays, and costs."
ACCEPTED="project zone name internal-ips job grace"
parse_options "$@"
on_worker all "$(worker_command stop "$RLAIF_JOB" "$RLAIF_GRACE")"
