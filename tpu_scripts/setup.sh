#!/usr/bin/env bash
# Prepares every worker: SSH key, code, Python, this package, the shared folder.
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
DESCRIPTION="setup.sh: warm up SSH, copy the code (sync.sh), install this package on every worker, mount the shared folder.
Safe to repeat."
ACCEPTED="project zone name internal-ips extra python mount-command"
parse_options "$@"

# One connection alone first: it makes the key pair, registers the public key with the TPU and meets slow sshd's.
# Many at once would race to do the same. gcloud itself tries ten times.
on_worker 0 true </dev/null
"$TPU_SCRIPTS/sync.sh"
on_worker all "$(worker_command setup "$RLAIF_EXTRA" "$RLAIF_PYTHON" "$RLAIF_MOUNT")"
