"""Rewards that are relative to other answers: settings that need an absolute one are refused."""

import pytest

from rlaif_jax.config import ArmConfig, FeedbackConfig, JudgeConfig, RlConfig, RuleConfig, RunConfig, TrainConfig
from rlaif_jax.errors import UserError

JUDGED = {"feedback": FeedbackConfig(backend="http"), "reward": None, "judge": JudgeConfig(game=None, mode="pairwise")}
CHOOSING = [{"patience": 2}, {"select": "best"}]


def rl(**train) -> RlConfig:
    return RlConfig(train=TrainConfig(batch_size=8, steps=20, eval_every=10, checkpoint_every=10, **train))


@pytest.mark.parametrize("train", CHOOSING)
def test_shares_of_wins_choose_no_checkpoint(train):
    with pytest.raises(UserError, match=r"arms\.rl_judge: judge\.mode is pairwise.*0\.5 on average.*(patience|select)"):
        RunConfig(rl=rl(**train), **JUDGED)
    assert RunConfig(rl=rl(), **JUDGED).judge.mode == "pairwise"
    RunConfig(rl=rl(**train), **JUDGED | {"judge": JudgeConfig(game=None, mode="soft")})
    RunConfig(rl=rl(**train), arms={"own": ArmConfig(functions={"f": "x.py:f"})}, **JUDGED)  # this arm does not ask the judge


@pytest.mark.parametrize("train", CHOOSING)
def test_rewards_normalised_over_a_batch_choose_no_checkpoint(train):
    arms = {"rl": ArmConfig(reward_model=1.0, rules=RuleConfig(normalise="batch"))}
    with pytest.raises(UserError, match=r"arms\.rl: rules\.normalise is batch, so the held-out reward is 0"):
        RunConfig(rl=rl(**train), arms=arms)
    assert RunConfig(rl=rl(), arms=arms).arms == arms


@pytest.mark.parametrize("field", ["rollout_chunks", "max_resamples"])
def test_rewards_normalised_over_a_batch_need_one_batch_per_step(field):
    arms = {"rl": ArmConfig(reward_model=1.0, rules=RuleConfig(normalise="batch"))}
    with pytest.raises(UserError, match=rf"with rl\.{field}=2 a step has several batches of rewards"):
        RunConfig(rl=RlConfig(train=TrainConfig(batch_size=8), **{field: 2}), arms=arms)
