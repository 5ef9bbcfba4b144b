"""Filters on the tokens to sample: temperature, top-k, top-p and min-p as traced values.

Thresholds are found by bisection over the bits of float32, ordered like integers. That is exact, needs 32 passes for any size
of the vocabulary, and avoids sorting the vocabulary, which would dominate a decode step.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated

import chex
import jax
import jax.numpy as jnp

from rlaif_jax.errors import UserError
from rlaif_jax.ranges import CountOrZero, Range, ShareBelowOne, Temperature, Tokens, check_fields


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How tokens are sampled.

    Attributes:
      temperature: divides the logits; 0 = greedy (always the likeliest token).
      top_k: sample only from the k likeliest tokens; 0 = off.
      top_p: sample only from the smallest set of likeliest tokens whose probabilities sum to top_p (arXiv 1904.09751); 1 = off.
      min_p: sample only tokens with at least min_p times the highest probability (arXiv 2407.01082); 0 = off.
      max_tokens: most tokens of a response, EOS included.
    """

    temperature: Temperature = 1.0
    top_k: CountOrZero = 0
    top_p: Annotated[float, Range(0, 1, above=True)] = 1.0
    min_p: ShareBelowOne = 0.0
    max_tokens: Tokens = 64

    def __post_init__(self):
        check_fields(self)


@chex.dataclass(frozen=True)
class SamplingParams:
    """A SamplingConfig as traced values: changing one does not recompile. `eos_ids` (E,) int32, -1 = unused."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    eos_ids: jax.Array


def traced(cfg: SamplingConfig, eos_ids: tuple[int, ...], slots: int = 4) -> SamplingParams:
    """The values as arrays. The EOS tokens are padded to `slots`, so that their number does not cause a recompile either."""
    if len(eos_ids) > slots:
        raise UserError(f"{len(eos_ids)} end-of-sequence tokens, but only {slots} are supported")
    return SamplingParams(
        temperature=jnp.float32(cfg.temperature),
        top_k=jnp.int32(cfg.top_k),
        top_p=jnp.float32(cfg.top_p),
        min_p=jnp.float32(cfg.min_p),
        eos_ids=jnp.array([*eos_ids] + [-1] * (slots - len(eos_ids)), jnp.int32),
    )


def _ordered_bits(x: jax.Array) -> jax.Array:
    """float32 -> uint32, such that the integers have the order of the floats."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31, ~bits, bits | jnp.uint32(1 << 31))


def _largest_threshold(values: jax.Array, holds) -> jax.Array:
    """(B, 1) uint32: the largest t with holds(values >= t). `holds` must be monotone, and true for t = 0."""

    def bit(i, t):
        candidate = t | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(holds(values >= candidate), candidate, t)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros((*values.shape[:-1], 1), jnp.uint32))


def _keep_mask(scaled: jax.Array, params: SamplingParams) -> jax.Array:
    """(B, V) bool for logits already divided by the temperature: top-k, then top-p of the remaining tokens, then min-p."""
    bits = _ordered_bits(scaled)
    k = jnp.where(params.top_k > 0, params.top_k, scaled.shape[-1])
    keep = bits >= _largest_threshold(bits, lambda m: jnp.sum(m, -1, keepdims=True) >= jnp.minimum(k, m.shape[-1]))
    prob = jax.nn.softmax(jnp.where(keep, scaled, -jnp.inf), axis=-1)
    target = jnp.where(params.top_p < 1, params.top_p, 0.0)  # off for top_p = 1: rounding could keep the sum below 1
    nucleus = bits >= _largest_threshold(bits, lambda m: jnp.sum(prob * m, -1, keepdims=True) >= target)
    keep &= nucleus | (params.top_p >= 1)
    top = jnp.max(scaled, axis=-1, keepdims=True)
    return keep & (scaled >= top + jnp.log(params.min_p))  # log 0 = -inf: min-p off keeps all


def filter_logits(logits: jax.Array, params: SamplingParams) -> jax.Array:
    """(B, V) float32 logits divided by the temperature, -inf where a filter removes the token.

    top-k keeps the k largest logits; top-p the smallest set of likeliest tokens with mass >= top_p (arXiv 1904.09751); min-p the
    tokens with at least min_p times the highest probability (arXiv 2407.01082). All ties at a threshold are kept.
    """
    scaled = logits.astype(jnp.float32) / jnp.where(params.temperature > 0, params.temperature, 1.0)
    active = (params.top_k > 0) | (params.top_p < 1) | (params.min_p > 0)
    return jax.lax.cond(active, lambda s: jnp.where(_keep_mask(s, params), s, -jnp.inf), lambda s: s, scaled)


def row_keys(seed: int | jax.Array, step: int | jax.Array, rows: jax.Array) -> jax.Array:
    """One random key per row from (seed, step, row), so a sample depends neither on the batch size nor on the mesh."""
    base = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(partial(jax.random.fold_in, base))(rows)


def sample_token(logits: jax.Array, keys: jax.Array, position: jax.Array, params: SamplingParams) -> jax.Array:
    """(B,) int32 tokens from (B, V) logits; `position` gives each token its own noise (Gumbel-max)."""
    keys = jax.vmap(lambda k: jax.random.fold_in(k, position))(keys)
    noise = jax.vmap(lambda k: jax.random.gumbel(k, (logits.shape[-1],), jnp.float32))(keys)
    noise = jnp.where(params.temperature > 0, noise, 0.0)
    return jnp.argmax(filter_logits(logits, params) + noise, axis=-1).astype(jnp.int32)
