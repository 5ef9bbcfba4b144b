#!/usr/bin/env bash
# Requests a TPU as a queued resource; returns as soon as the request is in the queue.
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
DESCRIPTION="create.sh: request a TPU (a queued resource); then use wait.sh. You pay from the moment it is ACTIVE until delete.sh."
ACCEPTED="project zone name accelerator-type runtime-version capacity valid-until service-account network subnetwork \
internal-ips attempts pause"
parse_options "$@"

runtime_version() {
  [ -z "$RLAIF_RUNTIME" ] || { printf '%s' "$RLAIF_RUNTIME" && return; }
  case $(generation) in
    v6e) echo v2-alpha-tpuv6e ;;
    v5p) echo v2-alpha-tpuv5 ;;
    v5e) echo v2-alpha-tpuv5-lite ;;
    v4) echo tpu-ubuntu2204-base ;;
    *) fail $EXIT_USAGE "unknown software version for '$RLAIF_ACCELERATOR'; set --runtime-version" ;;
  esac
}

version=$(runtime_version)
request=(--node-id="$RLAIF_NAME" --accelerator-type="$RLAIF_ACCELERATOR" --runtime-version="$version" --async)
[ "$RLAIF_CAPACITY" = on-demand ] || request+=("--$RLAIF_CAPACITY")
[ -z "$RLAIF_VALID_UNTIL" ] || request+=(--valid-until-duration="$RLAIF_VALID_UNTIL")
[ -z "$RLAIF_SERVICE_ACCOUNT" ] || request+=(--service-account="$RLAIF_SERVICE_ACCOUNT")
[ -z "$RLAIF_NETWORK" ] || request+=(--network="$RLAIF_NETWORK")
[ -z "$RLAIF_SUBNETWORK" ] || request+=(--subnetwork="$RLAIF_SUBNETWORK")
[ -z "$RLAIF_INTERNAL_IPS" ] || request+=(--internal-ips)

# A request fails for one of four reasons: no capacity (try again), no quota, the name is taken, anything else.
command=(gcloud compute tpus queued-resources create "$RLAIF_NAME" "${request[@]}"
  --project="$RLAIF_PROJECT" --zone="$RLAIF_ZONE" --quiet)
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
for ((attempt = 1; ; attempt++)); do
  show "${command[@]}"
  is_dry && exit 0
  if "${command[@]}" 2>"$errors"; then
    say "$RLAIF_NAME is in the queue; next: wait.sh"
    exit 0
  fi
  cat "$errors" >&2
  if ! grep -qiE 'no more capacity|stockout|insufficient capacity|not have enough resources' "$errors"; then
    ! grep -qi 'quota' "$errors" ||
      fail 1 "the project's quota is too low for $RLAIF_ACCELERATOR ($RLAIF_CAPACITY) in $RLAIF_ZONE; each capacity has its own quota"
    ! grep -qiE 'already[ _]exists' "$errors" ||
      fail 1 "$RLAIF_NAME exists already: check it with status.sh, delete it with delete.sh, or choose another --name"
    grep -qi 'resource_exhausted' "$errors" || fail 1 "gcloud refused the request, see above"
  fi
  if [ "$RLAIF_ATTEMPTS" -ne 0 ] && [ "$attempt" -ge "$RLAIF_ATTEMPTS" ]; then
    fail $EXIT_CAPACITY "no capacity for $RLAIF_ACCELERATOR in $RLAIF_ZONE ($attempt attempts); try another zone or --attempts"
  fi
  say "no capacity (attempt $attempt); next attempt in $RLAIF_PAUSE s"
  sleep "$RLAIF_PAUSE"
done
