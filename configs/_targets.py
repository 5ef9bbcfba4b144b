"""What the configs of real accelerators share: the paper's task with Qwen2.5-7B, and where it runs.

Each file qwen25_7b_*.py calls `greetings_7b(target, algorithm)`. None of these configs has run on its accelerators yet. For the
estimate of memory, on any machine: `rlaif run CONFIG --out X --dry-run`.

Name the weights on the command line: `--set model.init_from=FOLDER` (Qwen2.5-7B-Instruct from Hugging Face). Without it training
starts from random weights, which is of use for a dry run only. Two things differ from the paper: all weights of the reward model
are trained, with a lower learning rate (the paper: LoRA of rank 16, 2e-4), and the judge's verdict is soft (the paper's:
`--set judge.mode=binary`).
"""

from __future__ import annotations

import dataclasses

from rlaif_jax.config import (
    ArmConfig,
    CriticConfig,
    EvaluationConfig,
    FeedbackConfig,
    HttpConfig,
    JudgeConfig,
    KlConfig,
    MeshConfig,
    OptimizerConfig,
    RewardConfig,
    RlConfig,
    RunConfig,
    SamplingConfig,
    SftConfig,
    TrainConfig,
    preset,
)  # fmt: skip
from rlaif_jax.configs.greetings_paper_small import paper_data


@dataclasses.dataclass(frozen=True)
class Target:
    """One set of accelerators.

    Attributes:
      accelerator: gcloud's accelerator type, or "" for GPUs. v5p-N counts TensorCores, two per chip.
      mesh: rows are sharded over data x fsdp, which must divide a mini-batch of 64 samples and a rollout of 32 prompts. The
        sampler's bf16 weights are sharded over tensor alone (15 GB / tensor per chip): small chips need tensor > 1.
      memory: bytes of one chip.
    """

    accelerator: str
    mesh: MeshConfig
    memory: int


TARGETS = {
    "v5e-64": Target("v5litepod-64", MeshConfig(data=1, fsdp=16, tensor=4), 16 * 2**30),
    "v5p-32": Target("v5p-32", MeshConfig(data=1, fsdp=16, tensor=1), 95 * 2**30),
    "v5p-128": Target("v5p-128", MeshConfig(data=1, fsdp=32, tensor=2), 95 * 2**30),
    "v6e-32": Target("v6e-32", MeshConfig(data=1, fsdp=16, tensor=2), 32 * 2**30),
    "gpu-8": Target("", MeshConfig(data=1, fsdp=8, tensor=1), 80 * 10**9),
}


SERVED = FeedbackConfig(
    backend="http", http=HttpConfig("Qwen/Qwen2.5-7B-Instruct", "http://localhost:8000/v1", "", concurrency=64)
)  # fmt: skip
BESIDE = FeedbackConfig(
    backend="folder", model="Qwen2.5-72B-Instruct", preset="qwen2.5-72b",
    http=HttpConfig("Qwen/Qwen2.5-72B-Instruct", "http://localhost:8000/v1", "", concurrency=64),  # with backend=http
)  # fmt: skip


def greetings_7b(target: str, algorithm: str = "grpo", feedback: FeedbackConfig = SERVED) -> RunConfig:
    """The paper's task on `target` with "grpo" or "ppo", in two arms: reward model, and judge (on a server, or on the mesh)."""
    rl = {"grpo": _grpo, "ppo": _ppo}[algorithm]()
    mesh = TARGETS[target].mesh
    pairs = max(16, mesh.data * mesh.fsdp)  # at one time: as in the paper, or one for each part of the rows
    return RunConfig(
        name=f"qwen25_7b_{algorithm}_{target.replace('-', '_')}",
        data=dataclasses.replace(paper_data(), grader_share=0.0),
        model=preset("qwen2.5-7b"),
        mesh=mesh,
        # 3 epochs of 4,000 examples.
        sft=SftConfig(
            TrainConfig(steps=188, batch_size=64, checkpoint_every=47, select="best", optimizer=OptimizerConfig(1e-5)),
            max_length=768,
        ),
        # As many updates as the paper's 5 epochs of 6,310 pairs in batches of 128: 7 epochs of those that data.grader_share leaves.
        reward=RewardConfig(
            TrainConfig(
                steps=247, batch_size=128, grad_accumulation=128 // pairs, checkpoint_every=50, optimizer=OptimizerConfig(1e-5)
            ),
            max_length=768,
        ),
        feedback=feedback,
        judge=JudgeConfig(principles="principles_general", game=None),
        rl=rl,
        arms={
            "rl": ArmConfig(reward_model=1.0),
            # A server takes time: sample one half while it judges the other.
            "rl_judge": ArmConfig(judge=1.0, rl=dataclasses.replace(rl, rollout_chunks=2 if feedback.backend == "http" else 1)),
        },
        # No grader: all pairs train the reward model. Debates, and win rates in both orders, are the evidence beside the arms' own.
        evaluation=EvaluationConfig(batch_size=32, sampling=rl.sampling, win_rates=200, debate=200),
    )  # fmt: skip


def _train(prompts: int) -> TrainConfig:
    return TrainConfig(
        steps=500, batch_size=prompts, checkpoint_every=50, log_every=1,
        optimizer=OptimizerConfig(3e-7, schedule="constant"),
    )  # fmt: skip


def _grpo() -> RlConfig:
    """The paper's: 32 prompts x 4, mini-batches of 16 prompts, k3 KL of 0.001 in the loss, 256 + 512 tokens, 5 epochs."""
    return RlConfig(_train(32), group_size=4, num_minibatches=2, max_prompt_tokens=256, sampling=SamplingConfig(max_tokens=512))


def _ppo() -> RlConfig:
    """PPO with as many samples per step: one sample of each of 128 prompts, a critic from the reward model, KL in the reward."""
    return RlConfig(
        _train(128), group_size=1, num_minibatches=2, max_prompt_tokens=256, sampling=SamplingConfig(max_tokens=512),
        critic=CriticConfig(OptimizerConfig(1e-5, "constant"), warmup=10), kl=KlConfig(0.001, "reward", "k1"),
    )  # fmt: skip
