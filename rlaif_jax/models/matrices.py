"""Two replacements for a matrix in a parameter tree: a matrix with a low-rank update, and a matrix in 8 bits.

Both are trees with the matrix as their first leaf, where Linen looks for the shape. They are stacked, sliced and sharded leaf
by leaf, like any other tree.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """(..., D) times (D, F), computed as one 2-D product: on CPU its gradient is 1.4 times faster than in 3-D."""
    out = x.reshape(-1, x.shape[-1]) @ weight.astype(x.dtype)
    return out.reshape(*x.shape[:-1], weight.shape[-1])


@partial(jax.tree_util.register_dataclass, data_fields=["weight", "a", "b"], meta_fields=["scale"])
@dataclasses.dataclass(frozen=True)
class LoraMatrix:
    """A matrix (..., D, F) plus a low-rank update, kept apart: weight + scale * a (..., D, R) @ b (..., R, F)."""

    weight: jax.Array
    a: jax.Array
    b: jax.Array
    scale: float

    def matmul(self, x: jax.Array) -> jax.Array:
        """(..., D) times the sum, without computing the sum (arXiv 2106.09685, equation 3)."""
        return product(x, self.weight) + self.scale * product(product(x, self.a), self.b)

    def dense(self) -> jax.Array:
        """The sum, computed in float32 and rounded to the matrix's dtype."""
        a, b = (x.astype(jnp.float32) for x in (self.a, self.b))
        return (self.weight.astype(jnp.float32) + self.scale * (a @ b)).astype(self.weight.dtype)


@partial(jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Int8:
    """A matrix (..., D, F) as int8 values times a float32 scale (..., F) per output: half the bytes of bfloat16."""

    values: jax.Array
    scale: jax.Array

    def matmul(self, x: jax.Array) -> jax.Array:
        """(..., D) times the matrix; the scale is applied to the result."""
        return product(x, self.values) * self.scale.astype(x.dtype)

    def dense(self) -> jax.Array:
        """The matrix in float32."""
        return self.values.astype(jnp.float32) * self.scale[..., None, :]


Matrix = jax.Array | LoraMatrix | Int8


def is_wrapped(node: Any) -> bool:
    """Whether a node of a tree is a `LoraMatrix` or an `Int8`."""
    return isinstance(node, (LoraMatrix, Int8))


def dense(params: Any) -> Any:
    """The tree with a plain matrix in place of every `LoraMatrix` and `Int8`."""
    return jax.tree.map(lambda x: x.dense() if is_wrapped(x) else x, params, is_leaf=is_wrapped)
