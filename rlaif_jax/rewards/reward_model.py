"""A reward model as a reward: scores texts with a scalar model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.feedback.llm import Failure
from rlaif_jax.models import heads, ops
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.rewards.base import RewardFn, RewardResult, Sample
from rlaif_jax.sharding.move import gather, shard
from rlaif_jax.sharding.placement import Placement


def encode_samples(
    samples: Sequence[Sample], tokenizer: Tokenizer, max_length: int, whole_chat: bool = False
) -> tuple[np.ndarray, ...]:
    """tokens and segment_ids (B, T) int32, right-padded, and fits (B,) bool.

    An unfinished response is scored without the end of its turn. A row longer than T does not fit and is invalid.
    `whole_chat`: encode as the chat template renders a whole chat, as external reward models expect.
    """
    tokens = np.full((len(samples), max_length), tokenizer.pad_id, np.int32)
    segments = np.zeros_like(tokens)
    fits = np.ones(len(samples), bool)
    for i, e in enumerate(samples):
        if whole_chat:
            ids = tokenizer.encode_dialogue(e.prompt, e.response, e.system, e.finished)
        else:
            response = tokenizer.encode_response(e.response)
            ids = tokenizer.encode_chat_prompt(e.prompt, e.system) + (response if e.finished else response[:-1])
        fits[i] = len(ids) <= max_length
        ids = ids[:max_length]
        tokens[i, : len(ids)], segments[i, : len(ids)] = ids, 1
    return tokens, segments, fits


def make_reward_model(
    params: Any, cfg: ModelConfig, tokenizer: Tokenizer, max_length: int, place: Placement, batch_size: int, *,
    whole_chat: bool = False,
) -> RewardFn:  # fmt: skip
    """The reward function of a scalar model. It scores `batch_size` rows per call, all with one compiled shape.

    `whole_chat`: see `encode_samples`.

    With several processes, all of them must pass the same samples; each computes the rows on its devices.
    """

    @jax.jit
    def score(params, tokens, segment_ids):
        return heads.scores(params, cfg, tokens, segment_ids, ops.positions_of(segment_ids), place)

    def reward(samples: Sequence[Sample]) -> RewardResult:
        tokens, segments, fits = encode_samples(samples, tokenizer, max_length, whole_chat)
        values = []
        for start in range(0, len(samples), batch_size):
            piece = [np.asarray(a[start : start + batch_size]) for a in (tokens, segments)]
            count = len(piece[0])
            piece = [np.pad(a, ((0, batch_size - count), (0, 0))) for a in piece]
            rows = place.rows(batch_size)
            values.append(gather(score(params, *shard(piece, rows)))[:count])
        cause = Failure("rejected", f"prompt and answer have more than {max_length} tokens (max_length of the reward model)")
        return RewardResult(np.concatenate(values), fits, problem=None if fits.all() else cause)

    return reward
