"""The models of a run: token limits against what a model is made for, and room for every sampled answer."""

import dataclasses
import json

import pytest

from rlaif_jax.errors import UserError
from rlaif_jax.models.hf_config import to_hf
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.runs import rewards
from rlaif_jax.runs.models import check_lengths
from rlaif_jax.runs.rewards import RunRewards
from tests import tiny


def test_limits_beyond_the_positions_of_a_model_are_named_together(tmp_path):
    cfg, policy = tiny.config(), ModelConfig(max_positions=4096)
    check_lengths(cfg, policy)
    with pytest.raises(UserError) as found:
        check_lengths(cfg, dataclasses.replace(policy, max_positions=50))
    for field in ("sft.max_length is 96", "reward.max_length is 96", "rl.max_prompt_tokens + rl.sampling.max_tokens is 60"):
        assert f"{field}, the model is made for 50" in str(found.value)
    raw = to_hf(dataclasses.replace(policy, vocab_size=64, max_positions=80), scalar=True, dtype="float32", eos_ids=[1], pad_id=0)
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    foreign = dataclasses.replace(cfg, reward=dataclasses.replace(cfg.reward, folder=str(tmp_path)))
    with pytest.raises(UserError, match=r"their model: reward\.max_length is 96, the model is made for 80$"):
        check_lengths(foreign, policy)


def test_a_reward_model_has_room_for_every_sampled_answer(monkeypatch):
    cfg = tiny.config()
    short = dataclasses.replace(cfg, reward=dataclasses.replace(cfg.reward, max_length=20))
    made = []
    monkeypatch.setattr(rewards, "make_reward_model", lambda *args, **_: made.append(args[3]))

    class Models:
        config = tokenizer = None

        def scalar(self, name):
            return None

    for one in (cfg, short):
        run = type("Run", (), {"cfg": one, "place": None})()
        RunRewards(run, Models(), None).scalar("reward", 4)
    assert made == [96, cfg.rl.max_prompt_tokens + cfg.rl.sampling.max_tokens] and made[1] == 60
