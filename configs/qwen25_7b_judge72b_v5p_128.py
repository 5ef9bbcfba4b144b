r"""Qwen2.5-7B, GRPO at the paper's setting, on a TPU v5p-128 (128 cores: 64 chips of 95 GiB), judged by Qwen2.5-72B.

    export RLAIF_ACCELERATOR=v5p-128 RLAIF_NAME=... RLAIF_PROJECT=... RLAIF_ZONE=... RLAIF_MOUNT=...
    tpu_scripts/supervise.sh --delete-when-done -- rlaif run configs/qwen25_7b_judge72b_v5p_128.py --out /mnt/rlaif/j72 \
        --set data.root=/mnt/rlaif/data --set model.init_from=/mnt/rlaif/Qwen2.5-7B-Instruct \
        --set feedback.model=/mnt/rlaif/Qwen2.5-72B-Instruct

The judge is on the same mesh as policy and reference. A verdict is one forward pass; nothing is decoded. To use a judge on a
server: `--set feedback.backend=http --set feedback.http.base_url=http://HOST:8000/v1`. Not run on these devices yet, so speed and
results are unknown; `rlaif plan` says that it fits (docs/scaling.md).
"""

from rlaif_jax.config import RunConfig
from rlaif_jax.configs._targets import BESIDE, greetings_7b


def config() -> RunConfig:
    """The paper's GRPO with a larger judge."""
    return greetings_7b("v5p-128", feedback=BESIDE)
