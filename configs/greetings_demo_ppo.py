"""The demo with PPO instead of GRPO, one arm (reward model and rule): the critic starts from the reward model, KL in the reward.

    rlaif run configs/greetings_demo_ppo.py --out runs/demo_ppo

No feedback model is trained, so the reward model starts from SFT. `benchmarks/learning.py` gives both configs a demo run's models.
"""

import dataclasses

from rlaif_jax.config import CriticConfig, KlConfig, OptimizerConfig, RlConfig, RunConfig, TrainConfig
from rlaif_jax.configs import greetings_demo


def config() -> RunConfig:
    """Policy and data as in the demo."""
    demo = greetings_demo.config()
    rl = RlConfig(
        TrainConfig(steps=60, batch_size=64, checkpoint_every=20, log_every=2, optimizer=OptimizerConfig(2e-4, "linear")),
        group_size=2, kl=KlConfig(0.2, place="reward", estimator="k1"), num_minibatches=2, num_epochs=2,
        critic=CriticConfig(OptimizerConfig(5e-4, "constant"), warmup=3),
        sampling=demo.rl.sampling, max_prompt_tokens=demo.rl.max_prompt_tokens,
    )  # fmt: skip
    return dataclasses.replace(
        demo, name="greetings_demo_ppo", feedback=None, curate=None, judge=None, rl=rl, arms={"rl": demo.arms["rl"]},
        reward=dataclasses.replace(demo.reward, init="sft"), evaluation=dataclasses.replace(demo.evaluation, debate=0),
    )  # fmt: skip
