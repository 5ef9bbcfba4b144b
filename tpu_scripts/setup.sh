#!/usr/bin/env bash
# Prepares every worker: SSH key, code, Python, this package, the shared folder.
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
DESCRIPTION="setup.sh: warm up SSH, copy the code (sync.sh), install this package on every worker, mount the shared folder.
You can run it again at any time."
ACCEPTED="project zone name internal-ips extra python mount-command"
parse_options "$@"

# A single connection first: it creates the key pair, registers the public key with the TPU and waits for slow ssh servers.
# Parallel connections would race to do this. gcloud itself tries ten times.
on_worker 0 true </dev/null
"$TPU_SCRIPTS/sync.sh"
on_worker all "$(worker_command setup "$RLAIF_EXTRA" "$RLAIF_PYTHON" "$RLAIF_MOUNT")"
