"""Shardings of an optimizer's state: moments like their parameters, the rest replicated."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rlaif_jax.errors import UserError
from rlaif_jax.sharding.rules import split_axes
from rlaif_jax.sharding.trees import leaf_paths

Key = tuple[str, ...]
Shape = tuple[int, ...]


def optimizer_shardings(opt_state: Any, params: Any, shardings: Any) -> Any:
    """Shardings for an optax state (or any tree that contains trees like the parameters).

    Args:
      opt_state: the state, as arrays or ShapeDtypeStructs (`jax.eval_shape(optimizer.init, params)`).
      params, shardings: the parameters' tree and their NamedShardings (at least one).

    A leaf belongs to the parameter whose path is the end of the leaf's path: `0/mu/layers/q` belongs to `layers/q`. This also
    covers masked and partitioned states, schedules, accumulators and NNX optimizers. How a leaf is sharded depends on its shape:

    * the parameter's shape (moments): like the parameter.
    * extra leading dimensions (the memory of lbfgs): replicated along these.
    * some dimensions missing (the factors of adafactor): keeps the mesh axes of the remaining dimensions.
    * as many dimensions, some of them smaller by a factor (scales of blocks): keeps mesh axes where the sizes are divisible.
    * anything else (counts, placeholders of one element): replicated.

    UserError for a parameter without a NamedSharding.
    """
    where = _by_key(shardings)
    owners: dict[Key, tuple[Shape, NamedSharding]] = {}
    for key, x in _by_key(params).items():
        if not isinstance(where.get(key), NamedSharding):
            raise UserError(f"optimizer_shardings: the parameter {'/'.join(key)} has no NamedSharding in shardings")
        owners[key] = (np.shape(x), where[key])
    if not owners:
        raise UserError("optimizer_shardings: params has no arrays, so the mesh of the state is unknown")
    whole = NamedSharding(next(iter(owners.values()))[1].mesh, PartitionSpec())

    def one(key, leaf):
        start = next((i for i in range(len(key) + 1) if key[i:] in owners), None)
        if start is None:
            return whole
        owner, sharding = owners[key[start:]]
        if np.shape(leaf) == owner:
            return sharding
        part = key[start - 1] if start else ""
        return NamedSharding(sharding.mesh, _inherited(np.shape(leaf), owner, sharding, part))

    placed = [one(_key(path), leaf) for path, leaf in leaf_paths(opt_state)]
    return jax.tree.unflatten(jax.tree.structure(opt_state), placed)


def _by_key(tree: Any) -> dict[Key, Any]:
    return {_key(path): leaf for path, leaf in leaf_paths(tree)}


def _key(path: tuple) -> Key:
    return tuple(jax.tree_util.keystr((k,), simple=True) for k in path)


def _inherited(shape: Shape, owner: Shape, sharding: NamedSharding, part: str) -> PartitionSpec:
    """The spec of a leaf from its parameter's (the owner's) spec; replicated if the two shapes are unrelated.

    `part` is the component of the state: "v_row" for `0/v_row/layers/q`.
    """
    axes, extra = split_axes(sharding.spec, len(owner)), len(shape) - len(owner)
    if extra > 0 and shape[extra:] == owner:
        return _spec([()] * extra + axes)
    kept = _factor(shape, owner, part) or _subsequence(shape, owner)
    if kept is not None:
        return _spec([axes[i] for i in kept])
    if not _divided(shape, owner):
        return PartitionSpec()
    sizes = sharding.mesh.shape
    return _spec([() if n % math.prod(sizes[a] for a in names) else names for n, names in zip(shape, axes, strict=True)])


def _spec(axes: list[tuple[str, ...]]) -> PartitionSpec:
    spec = [names if len(names) > 1 else (names[0] if names else None) for names in axes]
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def _factor(shape: Shape, owner: Shape, part: str) -> list[int] | None:
    """The owner's dimensions that adafactor's "v_row" or "v_col" keeps; None if the leaf is not such a factor.

    optax drops the largest dimension for v_row and the second largest for v_col. For equal sizes (square matrices) the order
    is that of np.argsort, as in optax.
    """
    if part not in ("v_row", "v_col") or len(shape) + 1 != len(owner) or len(owner) < 2:
        return None
    dropped = int(np.argsort(owner)[-1 if part == "v_row" else -2])
    kept = [i for i in range(len(owner)) if i != dropped]
    return kept if tuple(owner[i] for i in kept) == shape else None


def _divided(shape: Shape, owner: Shape) -> bool:
    """Whether the shape is the owner's, with each dimension divided by some whole number."""
    return len(shape) == len(owner) and all(n and not size % n for n, size in zip(shape, owner, strict=True))


def _subsequence(shape: Shape, owner: Shape) -> list[int] | None:
    """The owner's dimensions that make up the shape, in order (the first match); None if there is no match."""
    found, at = [], 0
    for size in shape:
        while at < len(owner) and owner[at] != size:
            at += 1
        if at == len(owner):
            return None
        found.append(at)
        at += 1
    return found
