"""What the programs of a plan are made of: arguments that exist as shapes, dtypes and shardings only."""

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
      name: "sft", "reward", "rl: rollout", "rl: log-probs", "rl: scores", "rl: update", "rl_judge: verdicts"; of another arm
        "ARM: rollout" and so on.
      function: jitted; `function.trace(*arguments)`.
      held: what else the stage keeps on the chips meanwhile.
      read: bytes of weights and cache that one chip reads over and over beside arguments and results: the least that a
        program of this kind can do, for the roofline.
      loop_trips: how often a loop runs whose end depends on data (the response's limit).
      remedies: settings to try where it does not fit, best first.
      also: what it would be called as the program of other arms, which it serves, too.
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
    """A ShapeDtypeStruct with a name: equal names mean one array in memory, however often it is read."""

    __slots__ = ("name",)

    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any, sharding: Any):
        super().__init__(shape, dtype, sharding=sharding)
        self.name = name


def named(name: str, tree: Abstract) -> Abstract:
    """The tree as `Buffer`s, called after its name and their paths: to be given once to each thing that a stage keeps."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: Buffer(name + jax.tree_util.keystr(path), x.shape, x.dtype, x.sharding), tree
    )


def chip_bytes(tree: Abstract) -> int:
    """Bytes that one chip holds of a tree with shardings. A `Buffer` that occurs more than once (a base that serves several
    models) is held once; leaves without a name are arrays of their own."""
    leaves = jax.tree.leaves(tree)
    once = {x.name: x for x in leaves if isinstance(x, Buffer)}
    others = [x for x in leaves if not isinstance(x, Buffer)]
    return sum(jnp.dtype(x.dtype).itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in [*once.values(), *others])


def without(tree: Abstract, others: Any) -> Abstract:
    """The leaves of the tree that are not among the `Buffer`s of `others`."""
    used = {x.name for x in jax.tree.leaves(others) if isinstance(x, Buffer)}
    return [x for x in jax.tree.leaves(tree) if not (isinstance(x, Buffer) and x.name in used)]


def in_rows(tree: Any, place: Placement) -> Abstract:
    """Arrays whose first axis is rows, split over the mesh; scalars are replicated."""

    def one(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place.rows(x.shape[0]) if x.ndim else place.replicated)

    return jax.tree.map(one, tree)


def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """An array without a sharding yet."""
    return jax.ShapeDtypeStruct(shape, dtype)


def single(dtype: Any, place: Placement) -> jax.ShapeDtypeStruct:
    """One number, replicated."""
    return jax.ShapeDtypeStruct((), dtype, sharding=place.replicated)


def full_weights(model: ModelConfig, place: Placement, scalar: bool = False) -> Abstract:
    """All weights of a decoder, or of a decoder with a scalar head."""
    return abstract_params(Full(), model, place, scalar)[0]


def gathered_bytes(model: ModelConfig, place: Placement) -> int:
    """Bytes of the weights that one chip reads in one pass: compute dtype, gathered over fsdp, split over tensor."""
    weights = full_weights(model, place.without("fsdp"))
    return chip_bytes(weights) * jnp.dtype(model.compute_dtype).itemsize // jnp.dtype(model.param_dtype).itemsize
