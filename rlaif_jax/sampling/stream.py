"""Streams a response to a reader: the loop of `decode`, interrupted every few tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.sampling.decode import advance, begin, unstack
from rlaif_jax.sampling.filters import SamplingParams, row_keys
from rlaif_jax.sampling.sampler import for_sampling
from rlaif_jax.sharding.placement import Placement

Stream = Callable[..., Iterator[np.ndarray]]


def make_stream(
    params: Any, cfg: ModelConfig, axes: Any, place: Placement, *, max_tokens: int, pad_id: int, chunk: int = 4
) -> Stream:
    """stream(prompt (1, Tp), segment_ids, seed, step, sampling) yields new tokens, up to `chunk` at a time.

    The tokens, EOS included, are the same as from `make_sampler` with the same arguments and group 1. The weights are prepared
    once.
    """
    top, layers = jax.jit(lambda p: _prepared(for_sampling(p, cfg, axes, place), cfg))(params)

    @jax.jit
    def start(top, layers, prompt, segment_ids, seed, step):
        keys = row_keys(seed, step, jnp.arange(1))
        return begin(
            top, layers, cfg, prompt, segment_ids, keys, group=1, max_tokens=max_tokens, pad_id=pad_id, place=place
        )  # fmt: skip

    @partial(jax.jit, donate_argnums=3)
    def go_on(top, layers, prompted, state, sampling, until):
        return advance(top, layers, cfg, prompted, state, sampling, until=until, pad_id=pad_id)

    def stream(prompt, segment_ids, seed: int, step: int, sampling: SamplingParams) -> Iterator[np.ndarray]:
        prompted, state = start(top, layers, prompt, segment_ids, np.uint32(seed), np.uint32(step))
        shown, done = 0, False
        while shown < max_tokens and not done:
            state = go_on(top, layers, prompted, state, sampling, np.int32(min(shown + chunk, max_tokens)))
            tokens, mask, done = jax.device_get((state.tokens[0], state.mask[0], state.done[0]))
            count = int(mask.sum())
            yield tokens[shown:count]
            shown = count

    return stream


def _prepared(params: dict, cfg: ModelConfig) -> tuple[dict, tuple]:
    """The weights outside the blocks, and a tuple with the weights of each block."""
    return {name: w for name, w in params.items() if name != "layers"}, unstack(params, cfg)
