"""One computation after another, where neither reads what the other makes."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def after(x: jax.Array, never: jax.Array) -> jax.Array:
    """Returns `x` unchanged, but the compiler has to compute `never` first: whatever reads the result comes later.

    `never` is a condition on the earlier result that cannot hold and that the compiler cannot prove false: a token or a
    counter below 0, a log-prob above 1e30. It broadcasts against `x`: one entry per row keeps rows independent, so nothing is
    exchanged between devices.

    Two reasons to use it. Two models' activations are not in memory at the same time. And on CPU devices of several
    processes a collective has to read what the collective before it made, or devices may wait for each other for ever
    ("One order" in docs/multihost.md). `jax.lax.optimization_barrier` is not enough: the CPU compiler removes it before it
    decides on the order.
    """
    return jnp.where(never, jnp.zeros_like(x), x)
