"""Adam with both moments in 8 bits, in small blocks that share a scale (Dettmers et al. 2021, arXiv 2110.02861).

A block's scale is its largest magnitude. A code c stands for a share of the scale: (c / 127)^3 in the first moment, with
signed codes, and ((c + 1) / 256)^6 in the second. Like the paper's dynamic map, this is finest near zero, but it needs no
lookup table. The second moment, by whose root Adam divides, is never decoded to zero unless its block is zero.
Codes are rounded stochastically, since a moment moves by less than one code per update: rounding to nearest would lose that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlaif_jax.trainers.low_memory import step_keys

_SIZES = (256, 128, 64, 32, 16)
_SHARDS = 32  # a dimension sharded in up to this many parts should split no block


class Int8AdamState(NamedTuple):
    """`count`: number of updates. The moments are codes in the parameters' shapes, with scales per block (see `scale_shape`).

    A parameter without blocks has float32 moments, and its scales are 0.
    """

    count: jax.Array
    mu: Any
    mu_scale: Any
    nu: Any
    nu_scale: Any


def blocks(name: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """(axis counted from the end, size) of a parameter's blocks; None for vectors and for dimensions that no block size divides.

    Blocks run along the input axis of a layer's stacked matrices (L, D, F), and along the width of the embedding (V, D), since
    tokens differ most. The number of blocks is a multiple of 32 if possible. A dimension sharded in up to 32 parts then splits
    no block: the moments are sharded like the parameter, and an update needs no communication.
    """
    if len(shape) < 2 or name.endswith(("norm", "bias")):
        return None
    for axis in (-1, -2) if len(shape) == 2 else (-2, -1):
        fitting = [size for size in _SIZES if shape[axis] % size == 0]
        if fitting:
            return axis, next((size for size in fitting if shape[axis] // size % _SHARDS == 0), fitting[-1])
    return None


def scale_shape(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    """The parameter's shape with the block axis divided by the block size."""
    shape = list(shape)
    shape[axis] //= size
    return tuple(shape)


def _spread(scale: jax.Array, axis: int, size: int) -> jax.Array:
    """The scales repeated for every element of their block, float32."""
    return jnp.repeat(scale.astype(jnp.float32), size, axis=axis)


def _scales(x: jax.Array, axis: int, size: int) -> jax.Array:
    """The largest magnitude of each block, rounded up to bfloat16."""
    at = x.ndim + axis
    largest = jnp.max(jnp.abs(x).reshape(*x.shape[:at], -1, size, *x.shape[at + 1 :]), axis=at + 1)
    bits = jax.lax.bitcast_convert_type(largest, jnp.uint32) + jnp.uint32(0xFFFF)
    return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32).astype(jnp.bfloat16)


def _code(share: jax.Array, level: Any, guess: jax.Array, last: int, key: jax.Array) -> jax.Array:
    """Stochastic rounding to the code below or above, unbiased in the decoded value. `guess` is the code below, float32."""
    below = jnp.clip(jnp.floor(guess), 0, last - 1)
    low, high = level(below), level(below + 1)
    draw = jax.random.bits(key, share.shape, jnp.uint16).astype(jnp.float32) / 65536.0
    return below + (draw < (share - low) / (high - low))


def _first(code: jax.Array) -> jax.Array:
    return (code / 127.0) ** 3


def _second(code: jax.Array) -> jax.Array:
    return ((code + 1.0) / 256.0) ** 6


def _share(x: jax.Array, scale: jax.Array, block: tuple[int, int]) -> jax.Array:
    largest = _spread(scale, *block)
    return jnp.abs(x) / jnp.where(largest > 0, largest, 1.0)


def encode_first(m: jax.Array, block: tuple[int, int], key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32 first moments -> int8 codes of the same shape, and bfloat16 scales."""
    scale = _scales(m, *block)
    share = _share(m, scale, block)
    code = _code(share, _first, 127.0 * jnp.cbrt(share), 127, key)
    return (jnp.sign(m) * code).astype(jnp.int8), scale


def decode_first(code: jax.Array, scale: jax.Array, block: tuple[int, int]) -> jax.Array:
    """The inverse of `encode_first`, float32."""
    return _first(code.astype(jnp.float32)) * _spread(scale, *block)


def encode_second(v: jax.Array, block: tuple[int, int], key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32 second moments (>= 0) -> uint8 codes of the same shape, and bfloat16 scales."""
    scale = _scales(v, *block)
    share = _share(v, scale, block)
    code = _code(share, _second, 256.0 * jnp.cbrt(jnp.sqrt(share)) - 1.0, 255, key)
    return code.astype(jnp.uint8), scale


def decode_second(code: jax.Array, scale: jax.Array, block: tuple[int, int]) -> jax.Array:
    """The inverse of `encode_second`, float32; positive except in blocks of zeros."""
    return _second(code.astype(jnp.float32)) * _spread(scale, *block)


def _block_tree(params: Any) -> list[tuple[int, int] | None]:
    """`blocks` of each parameter, in the order of the tree's leaves."""
    named = jax.tree_util.tree_leaves_with_path(params)
    return [blocks(jax.tree_util.keystr(path[-1:], simple=True), tuple(p.shape)) for path, p in named]


def scale_by_adam(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    """Adam (arXiv 1412.6980, algorithm 1) whose moments are computed in float32 and stored in 8 bits."""

    def init(params: Any) -> Int8AdamState:
        leaves, structure = jax.tree.flatten(params)
        found = _block_tree(params)

        def moments(dtype: Any) -> Any:
            return structure.unflatten([
                jnp.zeros(p.shape, jnp.float32 if b is None else dtype) for p, b in zip(leaves, found, strict=True)
            ])  # fmt: skip

        def scales() -> Any:
            return structure.unflatten([
                jnp.zeros((), jnp.bfloat16) if b is None else jnp.zeros(scale_shape(p.shape, *b), jnp.bfloat16)
                for p, b in zip(leaves, found, strict=True)
            ])  # fmt: skip

        return Int8AdamState(jnp.int32(0), moments(jnp.int8), scales(), moments(jnp.uint8), scales())

    def update(grads: Any, state: Int8AdamState, params: Any = None) -> tuple[Any, Int8AdamState]:
        count, leaves = state.count + 1, jax.tree.leaves
        first, second = 1 - beta1 ** count.astype(jnp.float32), 1 - beta2 ** count.astype(jnp.float32)

        def one(g, mu, mu_scale, nu, nu_scale, key_mu, key_nu, block):
            if block is not None:
                mu, nu = decode_first(mu, mu_scale, block), decode_second(nu, nu_scale, block)
            mu, nu = beta1 * mu + (1 - beta1) * g, beta2 * nu + (1 - beta2) * jnp.square(g)
            step = mu / first / (jnp.sqrt(nu / second) + epsilon)
            if block is None:
                return step, mu, mu_scale, nu, nu_scale
            return step, *encode_first(mu, block, key_mu), *encode_second(nu, block, key_nu)

        trees = (grads, *state[1:], step_keys(count, grads, 3), step_keys(count, grads, 4))
        rows = [one(*row) for row in zip(*map(leaves, trees), _block_tree(grads), strict=True)]
        step, *kept = (jax.tree.structure(grads).unflatten(column) for column in zip(*rows, strict=True))
        return step, Int8AdamState(count, *kept)

    return optax.GradientTransformation(init, update)
