"""The main job on the bundled corpus of Chinese greetings: no download, about sixteen minutes on two CPU cores.

    rlaif run configs/greetings_demo.py --out runs/demo

Three quarters of the SFT answers have a flaw, as texts from the web have. Arm A: a reward model learns from preference pairs, and
GRPO maximises its score. Arm B: a judge gives the reward, asked about one principle at a time; a game optimises its principles.
Both rewards include a rule that checks what a request states explicitly. Results with these settings (benchmarks/RESULTS.md):
+12.9 points of flawless answers for arm A, +12.0 for arm B.
"""

import dataclasses

from rlaif_jax.config import (
    AdvantageConfig,
    ArmConfig,
    CorpusConfig,
    CurateConfig,
    DataConfig,
    EvaluationConfig,
    FeedbackConfig,
    GameConfig,
    JudgeConfig,
    KlConfig,
    OptimizerConfig,
    RewardConfig,
    RlConfig,
    RuleConfig,
    RunConfig,
    SamplingConfig,
    SftConfig,
    TokenizerConfig,
    TrainConfig,
    preset,
)  # fmt: skip


def config() -> RunConfig:
    """A 1M-parameter policy from scratch."""
    sampling = SamplingConfig(temperature=1.0, max_tokens=40)
    rl = RlConfig(
        TrainConfig(steps=60, batch_size=32, checkpoint_every=20, log_every=2,
                    optimizer=OptimizerConfig(2e-4, schedule="linear")),
        group_size=4, advantage=AdvantageConfig(scale="batch"), kl=KlConfig(0.2, place="reward", estimator="k1"),
        sampling=sampling, max_prompt_tokens=20, num_minibatches=2, num_epochs=2,
    )  # fmt: skip
    return RunConfig(
        name="greetings_demo",
        seed=2,  # seeds 0 and 1 chose the settings
        data=DataConfig(corpus=CorpusConfig(sft=24000, pairs=24000, eval_prompts=800, sft_flaw_rate=0.75)),
        tokenizer=TokenizerConfig(vocab_size=2816),
        model=preset("tiny-1m"),
        sft=SftConfig(
            TrainConfig(steps=1100, batch_size=16, checkpoint_every=550, optimizer=OptimizerConfig(2e-3)), max_length=64
        ),
        reward=RewardConfig(
            TrainConfig(steps=1000, batch_size=16, checkpoint_every=500, optimizer=OptimizerConfig(5e-4)),
            init="feedback", max_length=56,
        ),
        rl=rl,
        # A rule checks what a request states explicitly (length, number of items, first word ...).
        arms={
            "rl": ArmConfig(reward_model=1.0, rules=RuleConfig(constraint_weight=1.0)),
            # The judge's reward is between 0 and 1.2; the reward model's spread is ten times as large, so its KL penalty is larger.
            "rl_judge": ArmConfig(
                judge=1.0, rules=RuleConfig(constraint_weight=0.2),
                rl=dataclasses.replace(rl, kl=dataclasses.replace(rl.kl, coef=0.05)),
            ),
        },
        feedback=FeedbackConfig(
            train=TrainConfig(steps=1250, batch_size=8, checkpoint_every=625, optimizer=OptimizerConfig(1e-3)),
            max_length=128, pair_max_length=160, transcripts=18000, verdict_pairs=10000, pair_batch_size=4, questions=8,
        ),
        curate=CurateConfig(prompts=200, max_tokens=40, reply_tokens=48, with_data_pairs=True),
        judge=JudgeConfig(
            mode="checklist",
            game=GameConfig(rounds=3, games=8, reflections=32, edits=12, gate_rows=400, reply_tokens=48),
        ),
        evaluation=EvaluationConfig(batch_size=64, sampling=sampling, best_of=4, win_rates=100, debate=100),
    )  # fmt: skip
