"""From rewards of groups of samples to advantages."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def group_advantages(
    rewards: jax.Array, valid: jax.Array, group: int, *, scale: str = "group", epsilon: float = 1e-4
) -> jax.Array:
    """GRPO advantages (B,) float32 from rewards (B,), a prompt's `group` samples standing together.

    A = (r - mean) / (std + epsilon) over the valid samples of the group, std with ddof 1 (arXiv 2402.03300, eq. 21);
    scale "none" leaves the division out (Dr. GRPO, arXiv 2503.20783), "batch" divides by the std of the whole batch.
    `valid` (B,) bool is False where there is no verdict: such a sample counts nowhere and gets 0; so does a group with
    fewer than two verdicts.
    """
    r = jnp.where(valid, rewards.astype(jnp.float32), 0.0).reshape(-1, group)
    ok = valid.reshape(-1, group)
    count = jnp.sum(ok, axis=1, keepdims=True)
    mean = jnp.sum(r, axis=1, keepdims=True) / jnp.maximum(count, 1)
    centred = jnp.where(ok & (count > 1), r - mean, 0.0)
    if scale == "group":
        std = jnp.sqrt(jnp.sum(centred**2, axis=1, keepdims=True) / jnp.maximum(count - 1, 1))
        return (centred / (std + epsilon)).reshape(-1)
    if scale == "batch":
        all_mean = jnp.sum(r) / jnp.maximum(jnp.sum(ok), 1)
        spread = jnp.where(ok, r - all_mean, 0.0)
        std = jnp.sqrt(jnp.sum(spread**2) / jnp.maximum(jnp.sum(ok) - 1, 1))
        return (centred / (std + epsilon)).reshape(-1)
    return centred.reshape(-1)


def groups_without_signal(rewards: jax.Array, valid: jax.Array, group: int) -> jax.Array:
    """Share of groups in which all valid rewards are equal, so that they teach nothing."""
    r, ok = rewards.reshape(-1, group), valid.reshape(-1, group)
    low = jnp.min(jnp.where(ok, r, jnp.inf), axis=1)
    high = jnp.max(jnp.where(ok, r, -jnp.inf), axis=1)
    return jnp.mean((high <= low).astype(jnp.float32))
