"""Where an optimiser's state lies: moments beside their parameters, the rest whole on every device."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from rlaif_jax.sharding.rules import split_axes

Key = tuple[str, ...]


def optimizer_shardings(opt_state: Any, params: Any, shardings: Any) -> Any:
    """Shardings for an optax state (or any tree that holds trees like the parameters).

    Args:
      opt_state: the state, as arrays or ShapeDtypeStructs (`jax.eval_shape(optimizer.init, params)`).
      params, shardings: the parameters' tree and their NamedShardings (at least one).

    A leaf belongs to the parameter whose path ends its own: `0/mu/layers/q` to `layers/q`. So masked and partitioned
    states, schedules, accumulators and NNX optimisers are found, too. A leaf of the parameter's shape lies where the
    parameter does; one that lacks some of its dimensions (the factors of adafactor) keeps the axes of those it has; one with
    as many dimensions, some of them divided (scales of blocks), keeps the axes where the parts still divide; any other leaf
    (counts, placeholders of one element) is whole everywhere.
    """
    where = {_key(path): value for path, value in jax.tree_util.tree_leaves_with_path(shardings)}
    owners = {_key(path): (tuple(x.shape), where[_key(path)]) for path, x in jax.tree_util.tree_leaves_with_path(params)}
    mesh = next(iter(where.values())).mesh

    def one(path, leaf):
        key = _key(path)
        owner = next((owners[key[i:]] for i in range(len(key) + 1) if key[i:] in owners), None)
        if owner is not None and owner[0] == tuple(leaf.shape):
            return owner[1]
        return NamedSharding(mesh, PartitionSpec() if owner is None else _inherited(tuple(leaf.shape), *owner))

    return jax.tree_util.tree_map_with_path(one, opt_state)


def _key(path: tuple) -> Key:
    """The path as plain names; the "value" inside a Flax box or variable is left out wherever it stands."""
    boxed = (isinstance(k, jax.tree_util.GetAttrKey) and k.name == "value" for k in path)
    return tuple(jax.tree_util.keystr((k,), simple=True) for k, inside in zip(path, boxed, strict=True) if not inside)


def _inherited(shape: tuple[int, ...], owner_shape: tuple[int, ...], sharding: NamedSharding) -> PartitionSpec:
    """The owner's spec cut to the dimensions that the leaf has; whole where these are no part of the owner's."""
    parts = split_axes(sharding.spec, len(owner_shape))
    kept = _subsequence(shape, owner_shape)
    if kept is None and not _divided(shape, owner_shape):
        return PartitionSpec()
    if kept is None:
        sizes, kept = sharding.mesh.shape, range(len(shape))
        parts = [() if n % math.prod(sizes[a] for a in axes) else axes for n, axes in zip(shape, parts, strict=True)]
    spec = [parts[i] if len(parts[i]) > 1 else (parts[i][0] if parts[i] else None) for i in kept]
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def _divided(shape: tuple[int, ...], owner: tuple[int, ...]) -> bool:
    """Whether the shape is the owner's with some dimensions divided."""
    return len(shape) == len(owner) and all(n and not size % n for n, size in zip(shape, owner, strict=True))


def _subsequence(shape: tuple[int, ...], owner: tuple[int, ...]) -> list[int] | None:
    """Which of the owner's dimensions the shape consists of, in order, the first that fit; None if it does not."""
    found, at = [], 0
    for size in shape:
        while at < len(owner) and owner[at] != size:
            at += 1
        if at == len(owner):
            return None
        found.append(at)
        at += 1
    return found
