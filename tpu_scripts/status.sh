#!/usr/bin/env bash
# Shows the state of the request, of the TPU, and of the job on each worker.
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
DESCRIPTION="status.sh: show the state of the queued resource, of the TPU, and of the job on every worker."
ACCEPTED="project zone name internal-ips job"
parse_options "$@"

queued=$(queued_state)
is_dry || printf 'queued resource: %s\n' "$queued"
[ "$queued" = NONE ] && exit $EXIT_LOST
node=$(node_state)
is_dry || printf 'TPU: %s\n' "$node"
[ "$node" = READY ] || is_dry || exit 0
on_worker all "$(worker_command status "$RLAIF_JOB")"
