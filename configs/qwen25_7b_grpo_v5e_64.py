r"""Qwen2.5-7B, GRPO at the paper's setting, on a TPU v5e-64 (64 chips of 16 GiB, 8 x 8).

Against the reward model, then against a served judge.

    export RLAIF_ACCELERATOR=v5litepod-64 RLAIF_NAME=... RLAIF_PROJECT=... RLAIF_ZONE=... RLAIF_MOUNT=...
    tpu_scripts/supervise.sh --delete-when-done -- rlaif run configs/qwen25_7b_grpo_v5e_64.py --out /mnt/rlaif/grpo \
        --set data.root=/mnt/rlaif/data --set model.init_from=/mnt/rlaif/Qwen2.5-7B-Instruct \
        --set feedback.http.base_url=http://HOST:8000/v1

Not run yet: nothing is known of its speed or its results; `--dry-run` gives the estimate of memory. What differs from the
paper stands in configs/_targets.py. Without the judge's arm: `--set judge=none --set feedback=none`.
"""

from rlaif_jax.config import RunConfig
from rlaif_jax.configs._targets import greetings_7b


def config() -> RunConfig:
    """The paper's GRPO on this accelerator."""
    return greetings_7b("v5e-64")
