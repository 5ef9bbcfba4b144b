"""Forces the order of two computations that do not depend on each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def after(x: jax.Array, never: jax.Array) -> jax.Array:
    """Returns `x` unchanged, but forces XLA to compute `never` first; so everything that reads the result runs later.

    `never` is a condition on the earlier result that is always false, but that the compiler cannot prove false: a token or a
    counter below 0, a log-prob above 1e30. It broadcasts against `x`. With one entry per row, rows stay independent and nothing
    is exchanged between devices.

    Use it for two reasons. (1) Memory: the activations of two models are never live together. (2) Deadlocks: on CPU devices of
    several processes, a collective must read the result of the one before it, or devices may wait for each other forever
    ("Order of collectives" in docs/multihost.md). `jax.lax.optimization_barrier` is not enough: the CPU compiler removes it
    before it chooses the order.
    """
    return jnp.where(never, jnp.zeros_like(x), x)
