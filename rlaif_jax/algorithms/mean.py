"""Metrics that merge exactly over micro-batches and hosts: means keep sum and weight, and divide only at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mean(NamedTuple):
    """A mean as its sum and weight, so that merging means is exact."""

    total: jax.Array
    weight: jax.Array

    def value(self) -> jax.Array:
        """total / weight; 0 if the weight is 0."""
        return jnp.where(self.weight > 0, self.total / jnp.where(self.weight > 0, self.weight, 1.0), 0.0)

    def merge(self, other: Mean) -> Mean:
        """The mean over the data of both."""
        return Mean(self.total + other.total, self.weight + other.weight)


class Max(NamedTuple):
    """The largest value seen."""

    total: jax.Array

    def value(self) -> jax.Array:
        """The largest value; -inf if there was none."""
        return self.total

    def merge(self, other: Max) -> Max:
        """The larger of both."""
        return Max(jnp.maximum(self.total, other.total))


class Min(NamedTuple):
    """The smallest value seen."""

    total: jax.Array

    def value(self) -> jax.Array:
        """The smallest value; inf if there was none."""
        return self.total

    def merge(self, other: Min) -> Min:
        """The smaller of both."""
        return Min(jnp.minimum(self.total, other.total))


class Sum(NamedTuple):
    """A sum of means over different rows, each (N,): merged exactly, since the means are added last."""

    total: jax.Array
    weight: jax.Array

    def value(self) -> jax.Array:
        """The sum of total / weight over the means with a weight above 0."""
        return jnp.sum(jnp.where(self.weight > 0, self.total / jnp.where(self.weight > 0, self.weight, 1.0), 0.0), axis=-1)

    def merge(self, other: Sum) -> Sum:
        """The sum over the data of both."""
        return Sum(self.total + other.total, self.weight + other.weight)


def sum_of(*weighted: tuple[float, Mean]) -> Sum:
    """factor_1 * mean_1 + factor_2 * mean_2 + ..."""
    return Sum(jnp.stack([factor * mean.total for factor, mean in weighted]), jnp.stack([mean.weight for _, mean in weighted]))


Metrics = dict[str, Mean | Max | Min | Sum]
_NOTHING = {Mean: 0.0, Max: -jnp.inf, Min: jnp.inf, Sum: 0.0}


def merge(a: Metrics, b: Metrics) -> Metrics:
    """The metrics over the data of both. Both must have the same names."""
    return {name: type(m).merge(m, b[name]) for name, m in a.items()}  # type: ignore[arg-type]  # a name has one kind


def over_axis(stacked: Metrics) -> Metrics:
    """Merges metrics over the leading axis of their arrays (one entry per update)."""
    reduce: dict[type, Callable[..., jax.Array]] = {Mean: jnp.sum, Max: jnp.max, Min: jnp.min, Sum: jnp.sum}
    return {name: type(m)(*(reduce[type(m)](x, axis=0) for x in m)) for name, m in stacked.items()}


def empty(shapes: Metrics) -> Metrics:
    """Metrics of the same kinds without any data."""
    return {
        name: type(m)(*(jnp.full(x.shape, _NOTHING[type(m)], x.dtype) for x in m)) for name, m in shapes.items()
    }


def mean_of(x: jax.Array, mask: jax.Array | None = None) -> Mean:
    """The mean of x, or of x where mask (same shape, 0/1) is 1."""
    if mask is None:
        return Mean(jnp.sum(x), jnp.float32(x.size))
    return Mean(jnp.sum(jnp.where(mask > 0, x, 0.0) * mask), jnp.sum(mask))
