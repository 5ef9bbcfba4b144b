"""Rollouts in chunks: the same samples and rewards, and the reward of a chunk runs while the next is sampled."""

import dataclasses
import threading

import jax
import numpy as np
import pytest

from rlaif_jax.config import RlConfig, TrainConfig
from rlaif_jax.data.records import Prompt
from rlaif_jax.errors import UserError
from rlaif_jax.models import transformer
from rlaif_jax.rewards.base import RewardResult
from rlaif_jax.sampling.filters import SamplingConfig, traced
from rlaif_jax.sampling.sampler import make_sampler
from rlaif_jax.trainers.rollout import make_rollout

RL = RlConfig(TrainConfig(batch_size=4), group_size=3, sampling=SamplingConfig(max_tokens=6))


class Letters:
    """A tokenizer that writes each token as a letter."""

    def decode(self, ids):
        return "".join(chr(0x4E00 + i) for i in ids)


def length_reward(samples):
    values = np.array([len(e.response) for e in samples], np.float32)
    return RewardResult(values, values > 2, {"length": values})


@pytest.fixture
def rolled(small_model, one_device):
    """rolled(config, reward, wrap of the sampler) -> the rollout of four prompts."""
    params = transformer.init(small_model, jax.random.key(0))
    axes = transformer.logical_axes(small_model)
    sampler = make_sampler(small_model, axes, one_device, group=3, max_tokens=6, pad_id=0)
    records = [Prompt(f"写祝福{i}") for i in range(4)]
    tokens = np.arange(20, dtype=np.int32).reshape(4, 5) + 4
    prompts = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "row": np.arange(4)}

    def roll(rl, reward=length_reward, wrap=lambda sampler: sampler):
        sampling = traced(rl.sampling, (1, 2))
        return make_rollout(
            wrap(sampler), reward, records=records, tokenizer=Letters(), sampling=sampling, rl=rl, seed=5
        )(params, prompts, 9)  # fmt: skip

    return roll


def test_chunks_change_no_sample_and_no_reward(rolled):
    whole, parts = rolled(RL), rolled(dataclasses.replace(RL, rollout_chunks=2))
    assert [e.response for e in whole.samples] == [e.response for e in parts.samples]
    np.testing.assert_array_equal(whole.decoded.tokens, parts.decoded.tokens)
    a, b = whole.result(), parts.result()
    for x, y in ((a.values, b.values), (a.valid, b.valid), (a.components["length"], b.components["length"])):
        np.testing.assert_array_equal(x, y)


def test_a_chunk_is_rewarded_while_the_next_is_sampled(rolled):
    sampled = [threading.Event(), threading.Event()]

    def wrap(sampler):
        def noted(*args):
            decoded = sampler(*args)
            next(e for e in sampled if not e.is_set()).set()
            return decoded

        return noted

    def waits_for_the_second_chunk(samples):
        assert sampled[1].wait(timeout=60), "the second chunk was not sampled before the first was rewarded"
        return length_reward(samples)

    result = rolled(dataclasses.replace(RL, rollout_chunks=2), waits_for_the_second_chunk, wrap).result()
    assert len(result.values) == 12


def test_chunks_must_divide_the_batch():
    with pytest.raises(UserError, match="rollout_chunks"):
        dataclasses.replace(RL, rollout_chunks=3)
