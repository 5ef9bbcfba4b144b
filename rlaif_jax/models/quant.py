"""8-bit weights and KV caches for sampling: half the memory of bfloat16, with rounding errors below one per cent.

The quantised model differs slightly from the policy; `rl.policy.rollout_correction` corrects RL for that.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rlaif_jax.models.matrices import Int8
from rlaif_jax.sharding.placement import Placement

Cached = tuple[jax.Array, jax.Array] | jax.Array


def rounded(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """(int8 values of x's shape, float32 scales without `axis`): symmetric; the largest magnitude along `axis` becomes 127."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=axis) / 127.0
    divisor = jnp.expand_dims(jnp.where(scale > 0, scale, 1.0), axis)
    return jnp.round(x / divisor).astype(jnp.int8), scale


def quantised(matrix: jax.Array) -> Int8:
    """A matrix (..., D, F) in 8 bits with one scale per output, so the error of an output depends only on its own weights."""
    return Int8(*rounded(matrix, -2))


def quantise_layers(params: dict) -> dict:
    """A decoder with the matrices of its blocks in 8 bits; embeddings, norms and biases are unchanged."""
    layers = {n: quantised(w) if w.ndim == 3 else w for n, w in params["layers"].items()}
    return params | {"layers": layers}


def kept_in_8_bits(matrix: jax.Array, axes: tuple[str | None, ...], place: Placement) -> Int8:
    """Quantises a stacked matrix (L, D, F) with these logical axes on the mesh, and deletes the original."""
    at = Int8(place.array(axes, matrix.shape), place.array((axes[0], axes[2]), matrix.shape[::2]))
    out = jax.block_until_ready(jax.jit(quantised, out_shardings=at)(matrix))
    matrix.delete()
    return out


def keep_layers_in_8_bits(params: dict, axes: dict, place: Placement) -> dict:
    """A decoder with the matrices of its blocks in 8 bits. Every original is deleted before the next one is quantised."""
    layers = {n: kept_in_8_bits(w, axes["layers"][n], place) if w.ndim == 3 else w for n, w in params["layers"].items()}
    return params | {"layers": layers}


def to_cache(x: jax.Array, kind: str) -> Cached:
    """Keys or values (B, S, K, H) for the cache: "float" (unchanged), or "int8" with one scale per row, slot and head."""
    return x if kind == "float" else rounded(x, -1)


def from_cache(cached: Cached, dtype: Any) -> jax.Array:
    """The inverse of `to_cache`."""
    if not isinstance(cached, tuple):
        return cached
    values, scale = cached
    return (values.astype(jnp.float32) * scale[..., None]).astype(dtype)
