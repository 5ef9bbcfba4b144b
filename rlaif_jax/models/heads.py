"""Scalar heads on a decoder's hidden states: one number per token (a value) or per row (a reward)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from rlaif_jax.models import transformer
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.sharding.placement import Placement


class _ScalarHead(nn.Module):
    width: int

    @nn.compact
    def __call__(self, hidden):
        weights = transformer.declare(self, {"score": ((self.width,), ("norm",), 0.0)}, "float32")
        return hidden.astype(jnp.float32) @ weights["score"]


def init(cfg: ModelConfig, key: jax.Array) -> dict:
    """{"model": decoder, "head": {"score": (D,)}}. The head starts at zero, so every first score is 0."""
    return {"model": transformer.init(cfg, key), "head": zero_head(cfg)}


def zero_head(cfg: ModelConfig) -> dict:
    """{"score": (D,)} float32 zeros."""
    head = _ScalarHead(cfg.width).init(jax.random.key(0), jnp.zeros((1, cfg.width)))["params"]
    return nn.meta.unbox(head)


def logical_axes(cfg: ModelConfig) -> dict:
    """Logical axis names, as a tree like that of `init`."""
    return {"model": transformer.logical_axes(cfg), "head": {"score": ("norm",)}}


def values(
    params: dict, cfg: ModelConfig, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array,
    place: Placement | None = None,
) -> jax.Array:  # fmt: skip
    """One number per token, (B, T) float32."""
    hidden = transformer.forward(params["model"], cfg, tokens, segment_ids, positions, place)
    return _ScalarHead(cfg.width).apply({"params": params["head"]}, hidden)


def scores(
    params: dict, cfg: ModelConfig, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array,
    place: Placement | None = None,
) -> jax.Array:  # fmt: skip
    """One number per row, (B,) float32: the head at the row's last token that is not padding (the end of the response)."""
    hidden = transformer.forward(params["model"], cfg, tokens, segment_ids, positions, place)
    last = jnp.max(jnp.where(segment_ids > 0, jnp.arange(tokens.shape[1]), 0), axis=1)
    final = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return _ScalarHead(cfg.width).apply({"params": params["head"]}, final)
