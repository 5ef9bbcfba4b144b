"""The reference paper's public data with a small model from scratch, for two CPU cores.

    rlaif run configs/greetings_paper_small.py --set data.root=/path/to/data --out runs/paper

The reward model learns from 70 % of the paper's pairs. An evaluator of its own, the grader, learns from the rest, whose
queries the reward model never saw, and so does the generative judge, the reward of the second arm. The paper's labelled
rows are no use for that: without those that stand word for word in the pairs, 600 of the public 1,600 are left, 11 of
them good. The judge's principles stay as they are, since nobody labelled by principle.
"""
from rlaif_jax.config import (
    DataConfig,
    EvaluationConfig,
    FeedbackConfig,
    JudgeConfig,
    KlConfig,
    OptimizerConfig,
    RewardConfig,
    RlConfig,
    RunConfig,
    SamplingConfig,
    SftConfig,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
    preset,
)  # fmt: skip


def paper_data() -> DataConfig:
    """The public files under their own names. Pairs with chosen == rejected are skipped (counted).

    RL prompts come with a prefix; the other files get the same, so that every model reads one form of request.
    """
    prefix = "请只生成一条祝福语："
    return DataConfig(
        root="data/paper",
        sft=SourceConfig("sft_data.json", "alpaca", prefix=prefix),
        sft_eval=SourceConfig(),
        pairs=SourceConfig("reward_data_train.json", "sharegpt_pairs", prefix=prefix, on_error="skip"),
        pairs_eval=SourceConfig("reward_data_test.json", "sharegpt_pairs", prefix=prefix, on_error="skip"),
        grader_share=0.3,
        prompts=SourceConfig("grpo_train.parquet", "verl"),
        eval_prompts=SourceConfig("grpo_test.parquet", "verl"),
        eval_fraction=0.05,
    )


def config() -> RunConfig:
    """A 1M-parameter policy; responses of up to 64 tokens."""
    sampling = SamplingConfig(temperature=1.0, max_tokens=64)
    return RunConfig(
        name="greetings_paper_small",
        data=paper_data(),
        tokenizer=TokenizerConfig(vocab_size=4096),
        model=preset("tiny-1m"),
        sft=SftConfig(
            TrainConfig(steps=1500, batch_size=8, checkpoint_every=250, select="best", optimizer=OptimizerConfig(2e-3)),
            max_length=128,
        ),
        reward=RewardConfig(
            TrainConfig(steps=1100, batch_size=12, checkpoint_every=550, optimizer=OptimizerConfig(5e-4)), max_length=96
        ),
        grader=RewardConfig(
            TrainConfig(steps=600, batch_size=16, checkpoint_every=300, optimizer=OptimizerConfig(5e-4)),
            loss="binary", max_length=96,
        ),
        feedback=FeedbackConfig(
            train=TrainConfig(steps=500, batch_size=4, checkpoint_every=250, optimizer=OptimizerConfig(1e-3)),
            source="labelled", max_length=192, pair_max_length=192, pair_batch_size=8,
        ),
        judge=JudgeConfig(principles="principles_general", game=None),
        rl=RlConfig(
            TrainConfig(steps=60, batch_size=32, checkpoint_every=20, log_every=2,
                        optimizer=OptimizerConfig(2e-4, schedule="linear")),
            group_size=4, kl=KlConfig(0.1), sampling=sampling, max_prompt_tokens=36, num_minibatches=2,
        ),
        evaluation=EvaluationConfig(limit=300, batch_size=50, sampling=sampling),
    )  # fmt: skip
