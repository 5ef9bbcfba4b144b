#!/usr/bin/env bash
# Runs a job on several GPU hosts with SLURM, one process per host:
#
#   RLAIF_SECRETS=OPENAI_API_KEY sbatch --nodes=8 tpu_scripts/gpu_slurm.sh rlaif run CONFIG --out /shared/runs/x
#
# Submit it from the checkout. The checkout must be on a folder that all hosts share, with the .venv that `make install` makes.
# Secrets: sbatch passes on the environment of the submitting shell, so they are on no command line.
# After a preemption (or `scontrol requeue`), SLURM runs the same command again, and it resumes from its newest checkpoint.
#SBATCH --job-name=rlaif
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=rlaif-%j.log
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "gpu_slurm.sh: error: no command; for example: sbatch tpu_scripts/gpu_slurm.sh rlaif run CONFIG --out /shared/x" >&2
  exit 2
fi
code=${SLURM_SUBMIT_DIR:-$PWD} # not this file's folder, because SLURM runs a copy of the file
if [ ! -f "$code/tpu_scripts/lib.sh" ]; then
  echo "gpu_slurm.sh: error: $code is not a checkout of this project; submit the script from one" >&2
  exit 2
fi
# shellcheck source=lib.sh
source "$code/tpu_scripts/lib.sh"
# shellcheck disable=SC2034  # for the messages of lib.sh: SLURM's copy has another name
SCRIPT=gpu_slurm.sh
: "${RLAIF_SECRETS:=}"
check_secret_names
check_secrets "$@"
export PATH=$code/.venv/bin:$PATH
# JAX reads the coordinator, the number of processes and the rank from SLURM's variables, but would use only one GPU per process.
gpus=${SLURM_GPUS_ON_NODE:-8}
JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))
export JAX_LOCAL_DEVICE_IDS
launch=(srun --kill-on-bad-exit=1 --label python "$code/tpu_scripts/probe_flags.py" "${RLAIF_FLAGS:-h100}" -- "$@")
if [ -n "${RLAIF_DRY_RUN:-}" ]; then
  printf '%q ' "${launch[@]}"
  echo
  exit 0
fi
cd "$code"
exec "${launch[@]}"
