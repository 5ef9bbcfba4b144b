"""Means whose division is put off to the end, so that sums over micro-batches and hosts stay exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mean(NamedTuple):
    """A sum and its weight, kept apart until the end, so that the mean over micro-batches and hosts is exact."""

    total: jax.Array
    weight: jax.Array

    def value(self) -> jax.Array:
        """total / weight; 0 where nothing was counted."""
        return jnp.where(self.weight > 0, self.total / jnp.where(self.weight > 0, self.weight, 1.0), 0.0)

    def merge(self, other: Mean) -> Mean:
        """The mean over both."""
        return Mean(self.total + other.total, self.weight + other.weight)


class Max(NamedTuple):
    """The largest value seen."""

    total: jax.Array

    def value(self) -> jax.Array:
        """The value itself; -inf where nothing was seen."""
        return self.total

    def merge(self, other: Max) -> Max:
        """The larger of both."""
        return Max(jnp.maximum(self.total, other.total))


class Min(NamedTuple):
    """The smallest value seen."""

    total: jax.Array

    def value(self) -> jax.Array:
        """The value itself; inf where nothing was seen."""
        return self.total

    def merge(self, other: Min) -> Min:
        """The smaller of both."""
        return Min(jnp.minimum(self.total, other.total))


Metrics = dict[str, Mean | Max | Min]
_NOTHING = {Mean: 0.0, Max: -jnp.inf, Min: jnp.inf}


def merge(a: Metrics, b: Metrics) -> Metrics:
    """Metrics over what both have seen; both have the same names."""
    return {name: type(m).merge(m, b[name]) for name, m in a.items()}  # type: ignore[arg-type]  # the same kind under each name


def over_axis(stacked: Metrics) -> Metrics:
    """Metrics whose arrays have a leading axis (one entry per update), merged over it."""
    reduce: dict[type, Callable[..., jax.Array]] = {Mean: jnp.sum, Max: jnp.max, Min: jnp.min}
    return {name: type(m)(*(reduce[type(m)](x, axis=0) for x in m)) for name, m in stacked.items()}


def empty(shapes: Metrics) -> Metrics:
    """Metrics of the same kinds that have seen nothing."""
    return {
        name: type(m)(*(jnp.full(x.shape, _NOTHING[type(m)], x.dtype) for x in m)) for name, m in shapes.items()
    }


def mean_of(x: jax.Array, mask: jax.Array | None = None) -> Mean:
    """The mean of x, or of x where mask (same shape, 0/1) is 1."""
    if mask is None:
        return Mean(jnp.sum(x), jnp.float32(x.size))
    return Mean(jnp.sum(jnp.where(mask > 0, x, 0.0) * mask), jnp.sum(mask))
