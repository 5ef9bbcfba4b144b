#!/usr/bin/env bash
# Copies this checkout to every worker.
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
DESCRIPTION="sync.sh: copy the files of this git checkout (what git ignores stays here) to ~/$REMOTE_CODE of every worker."
ACCEPTED="project zone name internal-ips"
parse_options "$@"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
archive_code "$folder/rlaif_code.tar.gz"
over_ssh scp "$folder/rlaif_code.tar.gz" "$RLAIF_NAME:rlaif_code.tar.gz" --worker=all
on_worker all "$UNPACK"
