"""The update that trains every model: (state, batch) -> (state, metrics)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlaif_jax.algorithms.mean import Mean, Metrics, empty, merge
from rlaif_jax.sharding.move import shard
from rlaif_jax.sharding.optimizer import optimizer_shardings
from rlaif_jax.sharding.placement import Placement, abstract_like

LossFn = Callable[[Any, Any], tuple[Mean, Metrics]]  # (params, batch) -> loss; scalars in a batch apply to all rows


@chex.dataclass(frozen=True, kw_only=True)
class TrainState:
    """The state of training. `skipped` counts steps whose loss or gradient was not finite, or without a row to train on.

    `frozen`: weights that the loss reads but no step changes (the base of an adapter). They are not saved in checkpoints.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    skipped: jax.Array
    frozen: Any = None


Update = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def state_of(
    params: Any, axes: Any, optimizer: optax.GradientTransformation, place: Placement
) -> tuple[TrainState, TrainState]:
    """The state that trains these weights, and its shardings. The update donates the weights: do not use them elsewhere."""
    shardings = shardings_of(abstract_state(params, axes, optimizer, place))
    params = shard(params, shardings.params)  # arrays with another sharding (a new head) could not be donated
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    scalars = jax.device_put({"step": np.int32(0), "skipped": np.int32(0)}, place.replicated)
    return TrainState(params=params, opt_state=opt_state, **scalars), shardings


def abstract_state(params: Any, axes: Any, optimizer: optax.GradientTransformation, place: Placement) -> TrainState:
    """The state of `state_of` as ShapeDtypeStructs with shardings: the optimizer's moments are sharded like their parameters,
    scalars are replicated. `params` are arrays or ShapeDtypeStructs."""

    def build(params: Any) -> TrainState:
        return TrainState(params=params, opt_state=optimizer.init(params), step=jnp.int32(0), skipped=jnp.int32(0))

    shapes, at = jax.eval_shape(build, params), place.tree(axes, params)
    moments = optimizer_shardings(shapes.opt_state, shapes.params, at)
    return abstract_like(
        shapes, TrainState(params=at, opt_state=moments, step=place.replicated, skipped=place.replicated)
    )  # fmt: skip


def shardings_of(abstract: Any) -> Any:
    """The shardings in a tree of ShapeDtypeStructs (or arrays)."""
    return jax.tree.map(lambda x: x.sharding, abstract)


def _accumulate(loss_fn: LossFn, params: Any, batch: Any, accumulation: int) -> tuple[Any, Mean, Metrics]:
    """Sums of gradients, loss and metrics over micro-batches; the division comes after, so token means are exact."""

    def total(p, piece):
        loss, metrics = loss_fn(p, piece)
        return loss.total, (loss, metrics)

    grad = jax.grad(total, has_aux=True)
    if accumulation == 1:
        grads, (loss, metrics) = grad(params, batch)
        return grads, loss, metrics

    def split(x):  # row i goes to piece i % accumulation, so rows stay on their device; every piece gets the scalars
        if x.ndim == 0:
            return jnp.broadcast_to(x, (accumulation,))
        return jnp.moveaxis(x.reshape(-1, accumulation, *x.shape[1:]), 1, 0)

    def add(sums, piece):
        grads, (loss, metrics) = grad(params, piece)
        return (jax.tree.map(jnp.add, sums[0], grads), sums[1].merge(loss), merge(sums[2], metrics)), None

    pieces = jax.tree.map(split, batch)
    shapes, (_, metric_shapes) = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)  # a bfloat16 sum would lose small gradients
    start = zeros, Mean(jnp.float32(0.0), jnp.float32(0.0)), empty(metric_shapes)
    return jax.lax.scan(add, start, pieces)[0]


def make_update_fn(loss_fn: LossFn, optimizer: optax.GradientTransformation, accumulation: int = 1) -> Update:
    """The pure update: gradients over `accumulation` micro-batches, clipping, optimizer. Metrics are still `Mean`s.

    With frozen weights in the state, `loss_fn` is called as loss_fn(params, batch, frozen=...).

    If the loss or the gradient norm is not finite, or the batch has no valid row, the step changes only `skipped` and `step`: with
    a gradient of zero, weight decay and momentum would still change the weights.
    """

    def update(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        whole_loss = loss_fn if state.frozen is None else partial(loss_fn, frozen=state.frozen)
        grads, loss, metrics = _accumulate(whole_loss, state.params, batch, accumulation)
        scale = jnp.where(loss.weight > 0, 1.0 / jnp.where(loss.weight > 0, loss.weight, 1.0), 0.0)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32) * scale, grads)
        norm = optax.global_norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        usable = jnp.isfinite(norm) & jnp.isfinite(loss.value()) & (loss.weight > 0)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(usable, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        skipped = state.skipped + (~usable).astype(jnp.int32)
        new_state = state.replace(params=params, opt_state=opt_state, step=state.step + 1, skipped=skipped)
        return new_state, metrics | {"loss": loss, "grad_norm": Mean(norm, jnp.float32(1.0))}

    return update


def make_update(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, shardings: TrainState, accumulation: int = 1
) -> Callable[[TrainState, dict], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted update of `make_update_fn`. The state is donated; metrics are numbers."""
    update = make_update_fn(loss_fn, optimizer, accumulation)

    def step(state: TrainState, batch: dict):
        state, metrics = update(state, batch)
        return state, {name: m.value() for name, m in metrics.items()} | {"skipped": state.skipped}

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
