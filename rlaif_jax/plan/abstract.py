"""What the programs of a plan are made of: arguments that exist as shapes, dtypes and shardings only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlaif_jax.models import heads, transformer
from rlaif_jax.models import lora as lora_lib
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.sharding import Placement
from rlaif_jax.sharding.placement import abstract_like
from rlaif_jax.trainers.update import TrainState, state_shardings

Abstract = Any  # a tree of jax.ShapeDtypeStruct with shardings


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled function of a run.

    Attributes:
      name: "sft", "reward", "rl: rollout", "rl: log-probs", "rl: scores", "rl: update" or "rl_judge: verdicts".
      function: jitted; `function.trace(*arguments)`.
      held: what else the stage keeps on the chips meanwhile.
      read: bytes of weights and cache that one chip reads over and over beside arguments and results: the least that a
        program of this kind can do, for the roofline.
      loop_trips: how often a loop runs whose end depends on data (the response's limit).
      remedies: settings to try where it does not fit, best first.
    """

    name: str
    function: Callable
    arguments: tuple
    held: tuple[Abstract, ...] = ()
    read: float = 0.0
    loop_trips: int = 1
    remedies: tuple[tuple[str, ...], ...] = ()


def chip_bytes(tree: Abstract) -> int:
    """Bytes that one chip holds of a tree with shardings; what stands in it more than once (a base that serves several
    models) is held once."""
    leaves = {id(leaf): leaf for leaf in jax.tree.leaves(tree)}.values()
    return sum(jnp.dtype(x.dtype).itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)


def in_rows(tree: Any, place: Placement) -> Abstract:
    """Arrays whose first axis is rows, split over the mesh."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place.rows(x.shape[0])), tree)


def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """An array that lies nowhere yet."""
    return jax.ShapeDtypeStruct(shape, dtype)


def single(dtype: Any, place: Placement) -> jax.ShapeDtypeStruct:
    """One number, on all chips."""
    return jax.ShapeDtypeStruct((), dtype, sharding=place.replicated)


def policy_weights(model: ModelConfig, place: Placement) -> tuple[Any, Abstract]:
    """Logical axes and weights of a decoder."""
    axes = transformer.logical_axes(model)
    weights = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
    return axes, abstract_like(weights, place.tree(axes, weights))


def scalar_weights(model: ModelConfig, place: Placement) -> tuple[Any, Abstract]:
    """Logical axes and weights of a decoder with a scalar head."""
    axes = heads.logical_axes(model)
    weights = jax.eval_shape(lambda: heads.init(model, jax.random.key(0)))
    return axes, abstract_like(weights, place.tree(axes, weights))


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a stage trains, and the weights under it that it does not (None: it trains all)."""

    axes: Any
    params: Abstract
    frozen: Abstract | None = None


def weights_of(lora: LoraConfig | None, model: ModelConfig, place: Placement, scalar: bool) -> Weights:
    """Of a policy or a scalar model: everything, or an adapter (and the head) over a frozen decoder."""
    base = policy_weights(model, place)[1]
    if lora is None:
        return Weights(*(scalar_weights(model, place) if scalar else policy_weights(model, place)))
    axes = (heads.adapter_axes if scalar else lora_lib.logical_axes)(model, lora)
    init = heads.adapter_init if scalar else lora_lib.init
    trained = jax.eval_shape(lambda: init(model, lora, jax.random.key(0)))
    return Weights(axes, abstract_like(trained, place.tree(axes, trained)), {"model": base} if scalar else base)


def state_of(weights: Weights, optimizer: Any, place: Placement) -> tuple[TrainState, TrainState]:
    """The abstract twin of `update.state_of` and `adapter.adapter_state`."""

    def build(params: Any) -> TrainState:
        return TrainState(params=params, opt_state=optimizer.init(params), step=jnp.int32(0), skipped=jnp.int32(0))

    abstract = jax.eval_shape(build, weights.params)
    shardings = state_shardings(abstract, weights.axes, place)
    frozen_at = jax.tree.map(lambda x: x.sharding, weights.frozen)
    return abstract_like(abstract, shardings).replace(frozen=weights.frozen), shardings.replace(frozen=frozen_at)


def gathered_bytes(model: ModelConfig, place: Placement) -> int:
    """Bytes of the weights that one chip reads in one pass: compute dtype, gathered over fsdp, split over tensor."""
    weights = policy_weights(model, place.without("fsdp"))[1]
    return chip_bytes(weights) * jnp.dtype(model.compute_dtype).itemsize // jnp.dtype(model.param_dtype).itemsize


def without(tree: Abstract, others: tuple) -> Abstract:
    """The leaves of the tree that are not in `others`."""
    used = {id(leaf) for leaf in jax.tree.leaves(others)}
    return [leaf for leaf in jax.tree.leaves(tree) if id(leaf) not in used]
