#!/usr/bin/env bash
# Runs a job on GKE with XPK (pip install xpk): an example for a cluster made with `xpk cluster create`.
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
DESCRIPTION="xpk_example.sh [options] -- COMMAND ...: submit COMMAND as an XPK workload.
GKE starts it on every host, and restarts it if it dies."
ACCEPTED="project zone cluster job accelerator-type docker-image secrets flags max-restarts"
parse_options "$@"
[ ${#COMMAND[@]} -gt 0 ] || fail $EXIT_USAGE "no command; for example: xpk_example.sh -- rlaif run CONFIG --out /mnt/rlaif/demo"
[ -n "$RLAIF_DOCKER_IMAGE" ] || fail $EXIT_USAGE "--docker-image is missing: an image with this package (extra tpu) in /app"
check_secrets "${COMMAND[@]}"

workload=(xpk workload create --workload="$RLAIF_JOB" --cluster="$RLAIF_CLUSTER" --tpu-type="$RLAIF_ACCELERATOR"
  --project="$RLAIF_PROJECT" --zone="$RLAIF_ZONE" --docker-image="$RLAIF_DOCKER_IMAGE"
  --max-restarts="$RLAIF_MAX_RESTARTS" --restart-on-user-code-failure
  --command="cd /app && python tpu_scripts/probe_flags.py $(flag_set) -- $(quoted "${COMMAND[@]}")")
if [ -n "$RLAIF_SECRETS" ]; then
  # A name without a value: xpk takes the value from the environment. Everyone who may read pods in the namespace can then
  # see it; on a shared cluster, use a Kubernetes secret instead.
  names=$(mktemp)
  trap 'rm -f "$names"' EXIT
  printf '%s\n' "${RLAIF_SECRETS//,/$'\n'}" >"$names"
  workload+=(--env-file="$names")
fi
run "${workload[@]}"
