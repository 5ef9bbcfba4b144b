"""The update of an RL step: all updates of policy and critic from one rollout, in one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlaif_jax.algorithms.mean import Metrics, empty, over_axis
from rlaif_jax.sharding.order import after
from rlaif_jax.sharding.placement import Placement, constrain
from rlaif_jax.trainers.config import RlConfig
from rlaif_jax.trainers.rl_types import RlBatch, RlState
from rlaif_jax.trainers.trainable import scalar_base
from rlaif_jax.trainers.update import TrainState, Update


def make_update_program(
    policy_update: Update, critic_update: Update | None, rl: RlConfig, shardings: RlState, place: Placement
) -> Callable[..., tuple[RlState, dict]]:
    """Jitted: (state, batch, seed () uint32, step () int32, frozen) -> (state, metrics).

    The state is donated. Its `frozen` is None: frozen weights are a separate argument, since other models share these arrays.
    Each epoch shuffles the rows with a key from (seed, step). The policy is not updated while the critic warms up, nor for the
    rest of a step once its KL from the policy that sampled exceeds `rl.kl_early_stop`.
    """

    def program(state: RlState, batch: RlBatch, seed, number, frozen):
        orders = _orders(jax.random.fold_in(jax.random.key(seed), number), batch.mask.shape[0], rl)
        rests = number <= (rl.critic.warmup if rl.critic is not None else 0)
        critic = state.critic
        minibatches = _minibatches(batch, orders, place)
        state, metrics = _policy_updates(policy_update, state.replace(critic=None), minibatches, rests, frozen, rl)
        if critic_update is not None:
            # `after` makes XLA run the critic's updates after the policy's, so that only one model's activations need memory.
            # The condition is always false (`skipped` counts up from 0), but the compiler does not know that.
            minibatches = _minibatches(batch, after(orders, state.skipped < 0), place)
            critic, found = _critic_updates(critic_update, critic, minibatches, scalar_base(frozen))
            metrics |= found
        state = state.replace(critic=critic)
        # At the first update, policy and sampler have the same weights, so a gap comes from arithmetic alone.
        gap = jax.tree.map(lambda x: x[0], metrics["logprob_gap"]).value()
        facts = {"rollout_mismatch": gap, "skipped": state.skipped}
        facts |= {"critic/skipped": state.critic.skipped} if state.critic is not None else {}
        return state, {name: m.value() for name, m in over_axis(metrics).items()} | facts

    return jax.jit(program, donate_argnums=0, out_shardings=(shardings.replace(frozen=None), None))


def _orders(key: jax.Array, count: int, rl: RlConfig) -> jax.Array:
    """Shuffled row indices of each update: (num_epochs * num_minibatches, rows)."""
    orders = jax.vmap(lambda k: jax.random.permutation(k, count))(jax.random.split(key, rl.num_epochs))
    return orders.reshape(rl.num_epochs * rl.num_minibatches, -1)


def _minibatches(batch: RlBatch, orders: jax.Array, place: Placement) -> RlBatch:
    """The minibatches stacked: rows become (updates, rows, ...), scalars (updates,). The devices exchange the rows of all
    updates here, before the first one."""

    def one(x):
        if x.ndim == 0:
            return jnp.broadcast_to(x, orders.shape[:1])
        return constrain(x[orders], (None, "batch") + (None,) * (x.ndim - 1), place)

    return jax.tree.map(one, batch)


def _policy_updates(
    policy_update: Update, state: RlState, minibatches: RlBatch, rests: jax.Array, frozen: Any, rl: RlConfig
) -> tuple[RlState, Metrics]:
    """One policy update per minibatch, skipped where `rests`. Metrics are stacked over the updates."""

    def update(state: RlState, minibatch: RlBatch) -> tuple[RlState, Metrics]:
        state, metrics = policy_update(state.replace(frozen=frozen), minibatch)
        return state.replace(frozen=None), metrics  # frozen weights do not change: keep them out of the scan's carry

    def update_or_rest(state: RlState, minibatch: RlBatch, rests: jax.Array) -> tuple[RlState, Metrics]:
        if not (rl.kl_early_stop > 0 or (rl.critic is not None and rl.critic.warmup > 0)):
            return update(state, minibatch)
        shapes = jax.eval_shape(update, state, minibatch)[1]
        return jax.lax.cond(rests, lambda s, b: (s, empty(shapes)), update, state, minibatch)

    def one(carry, minibatch):
        state, rests = carry
        state, metrics = update_or_rest(state, minibatch, rests)
        if rl.kl_early_stop > 0:
            rests |= metrics["approx_kl"].value() > rl.kl_early_stop
        return (state, rests), metrics

    (state, _), metrics = jax.lax.scan(one, (state, rests), minibatches)
    return state, metrics


def _critic_updates(update: Update, critic: TrainState, minibatches: RlBatch, frozen: Any) -> tuple[TrainState, Metrics]:
    """One critic update per minibatch. Metrics are stacked over the updates."""

    def one(critic, minibatch):
        critic, metrics = update(critic.replace(frozen=frozen), minibatch)
        return critic.replace(frozen=None), {f"critic/{name}": m for name, m in metrics.items()}

    return jax.lax.scan(one, critic, minibatches)
