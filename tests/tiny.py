"""A run small enough for tests: every stage in seconds."""

from rlaif_jax.config import (
    CorpusConfig,
    DataConfig,
    EvaluationConfig,
    RewardConfig,
    RlConfig,
    RunConfig,
    SftConfig,
    TokenizerConfig,
    TrainConfig,
)  # fmt: skip
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.sampling.filters import SamplingConfig
from rlaif_jax.trainers.optimizer import OptimizerConfig


def config(steps: int = 6, checkpoint_every: int = 3) -> RunConfig:
    """All stages with a model of 60k parameters."""
    train = TrainConfig(
        steps=steps, batch_size=8, checkpoint_every=checkpoint_every, log_every=1, optimizer=OptimizerConfig(1e-3)
    )
    sampling = SamplingConfig(max_tokens=12)
    return RunConfig(
        name="tiny",
        data=DataConfig(corpus=CorpusConfig(sft=200, pairs=100, labelled=60, rl_prompts=100, eval_prompts=16)),
        tokenizer=TokenizerConfig(vocab_size=512),
        model=ModelConfig(width=32, ffn=64, layers=2, heads=4, kv_heads=2, head_dim=8),
        sft=SftConfig(train, max_length=96),
        reward=RewardConfig(train, max_length=96),
        grader=RewardConfig(train, loss="binary", max_length=96),
        rl=RlConfig(train, group_size=4, sampling=sampling, max_prompt_tokens=48, samples_every=1,
                    eval_prompts=8),
        evaluation=EvaluationConfig(batch_size=8, sampling=sampling),
    )  # fmt: skip
