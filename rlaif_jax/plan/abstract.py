"""Programs to plan. Their arguments are abstract: shapes, dtypes and shardings without data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.sharding import Placement
from rlaif_jax.trainers.trainable import Full, abstract_params

Abstract = Any  # a tree of jax.ShapeDtypeStruct with shardings


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled function of a run.

    Attributes:
      name: "sft", "reward", or "ARM: rollout", "ARM: log-probs", "ARM: scores", "ARM: update", "ARM: verdicts" of an arm.
      function: the jitted function; it is traced by `function.trace(*arguments)`.
      held: other arrays that the stage keeps on the chips while this program runs.
      read: bytes per chip of repeated weight and KV-cache reads from HBM, on top of arguments and results. A lower bound, for
        the roofline.
      loop_trips: iterations of a loop whose end depends on data (the limit on response tokens).
      remedies: settings to try if the program does not fit, best first.
      also: names of the same program in other arms.
    """

    name: str
    function: Callable
    arguments: tuple
    held: tuple[Abstract, ...] = ()
    read: float = 0.0
    loop_trips: int = 1
    remedies: tuple[tuple[str, ...], ...] = ()
    also: tuple[str, ...] = ()


class Buffer(jax.ShapeDtypeStruct):
    """A ShapeDtypeStruct with a name. Leaves with the same name are one array in memory."""

    __slots__ = ("name",)

    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any, sharding: Any):
        super().__init__(shape, dtype, sharding=sharding)
        self.name = name


def named(name: str, tree: Abstract) -> Abstract:
    """The tree with its leaves as `Buffer`s, named by `name` and their path. Call it once for each tree that a stage keeps."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: Buffer(name + jax.tree_util.keystr(path), x.shape, x.dtype, x.sharding), tree
    )


def chip_bytes(tree: Abstract) -> int:
    """Bytes per chip of a tree with shardings. A `Buffer` that occurs several times (a base that several models share) counts
    once. Every leaf without a name counts."""
    leaves = jax.tree.leaves(tree)
    once = {x.name: x for x in leaves if isinstance(x, Buffer)}
    others = [x for x in leaves if not isinstance(x, Buffer)]
    return sum(jnp.dtype(x.dtype).itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in [*once.values(), *others])


def without(tree: Abstract, others: Any) -> Abstract:
    """The leaves of the tree, except `Buffer`s that also occur in `others`."""
    used = {x.name for x in jax.tree.leaves(others) if isinstance(x, Buffer)}
    return [x for x in jax.tree.leaves(tree) if not (isinstance(x, Buffer) and x.name in used)]


def in_rows(tree: Any, place: Placement) -> Abstract:
    """The arrays with their first axis (rows) sharded over the mesh. Scalars are replicated."""

    def one(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place.rows(x.shape[0]) if x.ndim else place.replicated)

    return jax.tree.map(one, tree)


def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """An abstract array without a sharding."""
    return jax.ShapeDtypeStruct(shape, dtype)


def single(dtype: Any, place: Placement) -> jax.ShapeDtypeStruct:
    """A replicated scalar."""
    return jax.ShapeDtypeStruct((), dtype, sharding=place.replicated)


def full_weights(model: ModelConfig, place: Placement, scalar: bool = False) -> Abstract:
    """All weights of a decoder, or of a decoder with a scalar head."""
    return abstract_params(Full(), model, place, scalar)[0]


def gathered_bytes(model: ModelConfig, place: Placement) -> int:
    """Bytes of weights that one chip reads per forward pass: in the compute dtype, gathered over fsdp, sharded over tensor."""
    weights = full_weights(model, place.without("fsdp"))
    return chip_bytes(weights) * jnp.dtype(model.compute_dtype).itemsize // jnp.dtype(model.param_dtype).itemsize
