"""Statistics over the valid entries of an array. All float32; `mask` (0 or 1) has the shape of the array."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the valid entries; 0 if there are none."""
    return jnp.sum(jnp.where(mask > 0, x, 0.0)) / jnp.maximum(jnp.sum(mask), 1.0)


def masked_var(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Unbiased variance (ddof 1) over the valid entries; 0 if there are fewer than two."""
    centred = jnp.where(mask > 0, x - masked_mean(x, mask), 0.0)
    return jnp.sum(centred**2) / jnp.maximum(jnp.sum(mask) - 1.0, 1.0)


def whiten(x: jax.Array, mask: jax.Array, *, shift: bool = True) -> jax.Array:
    """(x - mean) / std over the valid entries, 0 elsewhere; with `shift` False the mean is kept."""
    mean = masked_mean(x, mask)
    white = (x - mean) * jax.lax.rsqrt(masked_var(x, mask) + 1e-8)
    return jnp.where(mask > 0, white if shift else white + mean, 0.0)


def explained_variance(predicted: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """1 - var(target - predicted) / var(target): 1 = perfect, 0 = no better than the mean, below 0 = worse."""
    return 1.0 - masked_var(target - predicted, mask) / jnp.maximum(masked_var(target, mask), 1e-8)
