r"""Qwen2.5-7B, GRPO at the paper's setting, on one host with 8 H100 or H200 GPUs.

Against the reward model, then against a served judge.

    rlaif run configs/qwen25_7b_grpo_gpu_8.py --out /shared/grpo --set data.root=/shared/data \
        --set model.init_from=/shared/Qwen2.5-7B-Instruct --set feedback.http.base_url=http://HOST:8000/v1

More hosts share the same batch: `--set mesh.data=HOSTS`, started by tpu_scripts/gpu_hosts.sh or gpu_slurm.sh.

Not run yet: nothing is known of its speed or its results; `--dry-run` gives the estimate of memory. What differs from the
paper stands in configs/_targets.py. Without the judge's arm: `--set judge=none --set feedback=none`.
"""

from rlaif_jax.config import RunConfig
from rlaif_jax.configs._targets import greetings_7b


def config() -> RunConfig:
    """The paper's GRPO on this accelerator."""
    return greetings_7b("gpu-8")
