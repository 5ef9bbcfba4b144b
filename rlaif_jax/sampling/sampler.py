"""Samples responses to rows of prompts, on the mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlaif_jax.models import ops
from rlaif_jax.models.matrices import Int8, is_wrapped
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.models.quant import quantised
from rlaif_jax.sampling.decode import Decoded, decode
from rlaif_jax.sampling.filters import SamplingParams, row_keys
from rlaif_jax.sharding.move import shard
from rlaif_jax.sharding.placement import Placement


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Samples responses; made by `make_sampler`. `program` is its jitted function."""

    program: Callable[..., Decoded]
    place: Placement

    def __call__(
        self, params: Any, prompts: Any, segment_ids: Any, seed: int, step: int, sampling: SamplingParams, first_row: int = 0
    ) -> Decoded:
        """prompts, segment_ids (P, Tp) -> P * group rows. Every process passes the same prompts: the global batch.

        seed, step, first_row and the sampling values are traced. `first_row` is the index of the first row in a larger batch, if
        this call samples only a part of it.
        """
        prompts, segment_ids = shard((prompts, segment_ids), self.place.rows(prompts.shape[0]))
        return self.program(params, prompts, segment_ids, np.uint32(seed), np.uint32(step), sampling, np.int32(first_row))


def for_sampling(params: Any, cfg: ModelConfig, axes: Any, place: Placement) -> Any:
    """Parameters for sampling: in the compute dtype, gathered over fsdp once per rollout and not once per token. Under jit.

    Vectors keep their dtype, as in the trainer: norms compute in float32. Adapters are merged into their weights. With
    `cfg.rollout_quant` int8 the matrices of the blocks are quantised to 8 bits; those that are in 8 bits already stay so anyway.
    """
    gathered = place.without("fsdp")

    def constrained(x, axes):
        return jax.lax.with_sharding_constraint(x, gathered.array(axes, x.shape))

    def in_8_bits(small, axes):
        return Int8(constrained(small.values, axes), constrained(small.scale, (axes[0], axes[2])))

    def one(axes, w):
        if isinstance(w, Int8):
            return in_8_bits(w, axes)
        if len(axes) - ("layers" in axes) == 1:
            return constrained(w, axes)
        w = (w.dense() if is_wrapped(w) else w).astype(cfg.compute_dtype)
        if cfg.rollout_quant == "float" or len(axes) < 3:
            return constrained(w, axes)
        return in_8_bits(quantised(w), axes)  # quantise before gathering, which then moves half the bytes

    return jax.tree.map(one, axes, params, is_leaf=lambda a: isinstance(a, tuple))


def make_sampler(cfg: ModelConfig, axes: Any, place: Placement, *, group: int, max_tokens: int, pad_id: int) -> Sampler:
    """A sampler of `group` responses per prompt, each up to `max_tokens` tokens. `axes` are the logical axes of the weights."""

    def run(params, prompts, segment_ids, seed, step, sampling, first_row):
        params = for_sampling(params, cfg, axes, place)
        keys = row_keys(seed, step, first_row + jnp.arange(prompts.shape[0] * group))
        return decode(
            params, cfg, prompts, segment_ids, keys, sampling, group=group, max_tokens=max_tokens, pad_id=pad_id,
            place=place,
        )  # fmt: skip

    return Sampler(jax.jit(run), place)


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Prompt and response as one sequence for the trainer: tokens, segment_ids, positions (B, Tp + R)."""

    tokens: jax.Array
    segment_ids: jax.Array
    positions: jax.Array


def sequences(prompts: jax.Array, segment_ids: jax.Array, decoded: Decoded, group: int) -> Sequences:
    """The rows that the trainer scores: the left-padded prompt, repeated for its group, then the response."""
    tokens = jnp.concatenate([jnp.repeat(prompts, group, axis=0), decoded.tokens], axis=1)
    segments = jnp.concatenate(
        [jnp.repeat(segment_ids, group, axis=0) > 0, decoded.mask > 0], axis=1
    ).astype(jnp.int32)  # fmt: skip
    return Sequences(tokens, segments, ops.positions_of(segments))
