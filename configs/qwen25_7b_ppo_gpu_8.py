r"""Qwen2.5-7B, PPO with as many samples per step as the paper, on one host with 8 H100 or H200 GPUs.

Two arms: one maximises the reward model's score, the other the verdicts of a judge that a server runs.

    rlaif run configs/qwen25_7b_ppo_gpu_8.py --out /shared/ppo --set data.root=/shared/data \
        --set model.init_from=/shared/Qwen2.5-7B-Instruct --set feedback.http.base_url=http://HOST:8000/v1

More hosts share the same batch: `--set mesh.data=HOSTS`, started by tpu_scripts/gpu_hosts.sh or gpu_slurm.sh.

Not run on these devices yet, so speed and results are unknown; `--dry-run` estimates the memory. configs/_targets.py lists what
differs from the paper. To leave out the judge's arm: `--set judge=none --set feedback=none`.
"""

from rlaif_jax.config import RunConfig
from rlaif_jax.configs._targets import greetings_7b


def config() -> RunConfig:
    """PPO on this accelerator."""
    return greetings_7b("gpu-8", "ppo")
