"""The reference paper's public data with a small model from scratch, for two CPU cores.

    rlaif run configs/greetings_paper_small.py --set data.root=/path/to/data --out runs/paper

The reward model learns from 70 % of the paper's pairs. The grader, an independent evaluator, and the generative judge, which is
the reward of the second arm, learn from the other 30 %, each from half of its queries; the reward model never sees them. The
paper's labelled rows cannot train a grader: 1,000 of the public 1,600 also occur in the pairs or in SFT, and only 11 of the
other 600 are good. The judge's principles are not optimised, because no row has labels for each principle.
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

    The public RL prompts have a prefix. The other files get the same one, so every model reads one form of request.
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
        evaluation=EvaluationConfig(limit=300, batch_size=50, sampling=sampling, win_rates=200),
    )  # fmt: skip
