r"""Qwen2.5-7B, PPO with as many samples per step as the paper, on a TPU v5e-64 (64 chips of 16 GiB, 8 x 8).

Two arms: one maximises the reward model's score, the other the verdicts of a judge that a server runs.

    export RLAIF_ACCELERATOR=v5litepod-64 RLAIF_NAME=... RLAIF_PROJECT=... RLAIF_ZONE=... RLAIF_MOUNT=...
    tpu_scripts/supervise.sh --delete-when-done -- rlaif run configs/qwen25_7b_ppo_v5e_64.py --out /mnt/rlaif/ppo \
        --set data.root=/mnt/rlaif/data --set model.init_from=/mnt/rlaif/Qwen2.5-7B-Instruct \
        --set feedback.http.base_url=http://HOST:8000/v1

Not run on these devices yet, so speed and results are unknown; `--dry-run` estimates the memory. configs/_targets.py lists what
differs from the paper. To leave out the judge's arm: `--set judge=none --set feedback=none`.
"""

from rlaif_jax.config import RunConfig
from rlaif_jax.configs._targets import greetings_7b


def config() -> RunConfig:
    """PPO on this accelerator."""
    return greetings_7b("v5e-64", "ppo")
