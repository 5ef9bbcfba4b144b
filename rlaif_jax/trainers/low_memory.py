"""Optimizers that need less memory: moments in bfloat16, and bfloat16 parameters with or without float32 master copies.

A small update of a bfloat16 number is lost in rounding to nearest; stochastic rounding is right on average. Its random bits
depend on the step and on the parameter's index only, so a resumed run gives the same result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

_ROUNDING = 0x5EED  # the random key of all rounding; step and parameter index are folded in


def stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 -> one of the two neighbouring bfloat16 numbers, the nearer one more likely; unbiased."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    bits = bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = bits & jnp.uint32(0xFFFF0000)
    out = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(jnp.isfinite(x), out, x).astype(jnp.bfloat16)


def step_keys(count: jax.Array, tree: Any, stream: int) -> Any:
    """A random key per leaf of the tree for step `count`. Each use has its own `stream`: 0 to 2 here, 3 and 4 in `int8_adam`."""
    base = jax.random.fold_in(jax.random.fold_in(jax.random.key(_ROUNDING), stream), count)
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([jax.random.fold_in(base, i) for i in range(len(leaves))])


class AdamState(NamedTuple):
    """`count`: number of updates. Both moments are bfloat16."""

    count: jax.Array
    mu: Any
    nu: Any


def scale_by_adam(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    """Adam (arXiv 1412.6980, algorithm 1) whose moments are computed in float32 and stored in bfloat16."""

    def init(params: Any) -> AdamState:
        mu, nu = (jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.bfloat16), params) for _ in range(2))
        return AdamState(jnp.int32(0), mu, nu)

    def update(grads: Any, state: AdamState, params: Any = None) -> tuple[Any, AdamState]:
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: beta1 * m.astype(jnp.float32) + (1 - beta1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: beta2 * v.astype(jnp.float32) + (1 - beta2) * jnp.square(g), state.nu, grads)
        first, second = 1 - beta1 ** count.astype(jnp.float32), 1 - beta2 ** count.astype(jnp.float32)
        updates = jax.tree.map(lambda m, v: m / first / (jnp.sqrt(v / second) + epsilon), mu, nu)
        kept = (jax.tree.map(stochastic_round, x, step_keys(count, x, stream)) for stream, x in enumerate((mu, nu)))
        return updates, AdamState(count, *kept)

    return optax.GradientTransformation(init, update)


def _in_bfloat16(params: Any) -> bool:
    return any(p.dtype == jnp.bfloat16 for p in jax.tree.leaves(params))


def _step_to(target: jax.Array, p: jax.Array) -> jax.Array:
    """The float32 update that, added to p, gives exactly `target` (of the dtype of p)."""
    return target.astype(jnp.float32) - p.astype(jnp.float32)


class MasterState(NamedTuple):
    """Float32 master copies of the parameters, and the state of the optimizer that updates them."""

    masters: Any
    inner: Any


def with_masters(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs `inner` on float32 master copies; the parameters are these, rounded. `inner` itself if no parameter is bfloat16."""

    def init(params: Any) -> Any:
        if not _in_bfloat16(params):
            return inner.init(params)
        masters = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        return MasterState(masters, inner.init(masters))

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        if not isinstance(state, MasterState):
            return inner.update(grads, state, params)
        updates, inner_state = inner.update(grads, state.inner, state.masters)
        masters = optax.apply_updates(state.masters, updates)
        return jax.tree.map(lambda m, p: _step_to(m.astype(p.dtype), p), masters, params), MasterState(masters, inner_state)

    return optax.GradientTransformation(init, update)


class RoundingState(NamedTuple):
    """`count`: number of updates. `inner`: state of the inner optimizer."""

    count: jax.Array
    inner: Any


def with_rounding(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Rounds the updates of bfloat16 parameters stochastically. Changes nothing for other parameters."""

    def init(params: Any) -> Any:
        if not _in_bfloat16(params):
            return inner.init(params)
        # For bfloat16 parameters, optax would keep bfloat16 moments, and rounding to nearest would lose their small changes.
        return RoundingState(jnp.int32(0), inner.init(jax.tree.map(lambda p: p.astype(jnp.float32), params)))

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        if not isinstance(state, RoundingState):
            return inner.update(grads, state, params)
        updates, inner_state = inner.update(grads, state.inner, params)

        def one(u, p, key):
            if p.dtype != jnp.bfloat16:
                return u
            return _step_to(stochastic_round(p.astype(jnp.float32) + u, key), p)

        count = state.count + 1
        return jax.tree.map(one, updates, params, step_keys(count, params, 2)), RoundingState(count, inner_state)

    return optax.GradientTransformation(init, update)
