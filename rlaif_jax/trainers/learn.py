"""The last part of an RL step: all updates of policy and critic from one rollout, in one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlaif_jax.algorithms.mean import Metrics, empty, over_axis
from rlaif_jax.sharding.placement import Placement, constrain
from rlaif_jax.trainers.config import RlConfig
from rlaif_jax.trainers.rl import RlState, critic_base
from rlaif_jax.trainers.update import TrainState, Update


def _orders(key: jax.Array, count: int, rl: RlConfig) -> jax.Array:
    """The rows of each mini-batch of each epoch: (epochs * minibatches, rows)."""
    orders = jax.vmap(lambda k: jax.random.permutation(k, count))(jax.random.split(key, rl.epochs))
    return orders.reshape(rl.epochs * rl.minibatches, -1)


def _pieces(batch: dict, orders: jax.Array, place: Placement) -> dict:
    """The batch's rows in these orders, (updates, rows, ...): all devices sample them before the first update."""
    return jax.tree.map(lambda x: constrain(x[orders], (None, "batch") + (None,) * (x.ndim - 1), place), batch)


def make_learn(
    policy_update: Update, critic_update: Update | None, rl: RlConfig, shardings: RlState, place: Placement
) -> Callable[[RlState, dict, int, int], tuple[RlState, dict]]:  # fmt: skip
    """learn(state, batch, seed, step): all updates of one rollout in one jitted program; all of the state but `frozen` is
    donated.

    Each epoch shuffles the rows by a key of (seed, step). The policy rests while the critic warms up, and for the rest of
    the step once its KL from the policy that sampled exceeds `rl.kl_stop`.
    """
    may_rest = rl.kl_stop > 0 or (rl.critic is not None and rl.critic.warmup > 0)

    def policy_turn(state: RlState, piece: dict, rests: jax.Array, frozen: Any) -> tuple[RlState, Metrics]:
        def update(state: RlState, piece: dict) -> tuple[RlState, Metrics]:
            state, metrics = policy_update(state.replace(frozen=frozen), piece)
            return state.replace(frozen=None), metrics  # what no update changes is not carried from one to the next

        if not may_rest:
            return update(state, piece)
        shapes = jax.eval_shape(update, state, piece)[1]
        return jax.lax.cond(rests, lambda s, p: (s, empty(shapes)), update, state, piece)

    def policy_turns(state: RlState, pieces: dict, rests: jax.Array, frozen: Any) -> tuple[RlState, Metrics]:
        def one(carry, piece):
            state, rests = carry
            state, metrics = policy_turn(state, piece, rests, frozen)
            if rl.kl_stop > 0:
                rests |= metrics["kl_old"].value() > rl.kl_stop
            return (state, rests), metrics

        (state, _), metrics = jax.lax.scan(one, (state, rests), pieces)
        return state, metrics

    def critic_turns(critic: TrainState, pieces: dict, frozen: Any) -> tuple[TrainState, Metrics]:
        def one(critic, piece):
            critic, metrics = critic_update(critic.replace(frozen=frozen), piece)
            return critic.replace(frozen=None), {f"critic/{name}": m for name, m in metrics.items()}

        return jax.lax.scan(one, critic, pieces)

    def learn(state: RlState, batch: dict, seed, number, frozen):
        orders = _orders(jax.random.fold_in(jax.random.key(seed), number), batch["mask"].shape[0], rl)
        rests = number <= (rl.critic.warmup if rl.critic is not None else 0)
        critic = state.critic
        state, metrics = policy_turns(state.replace(critic=None), _pieces(batch, orders, place), rests, frozen)
        if critic_update is not None:
            # Neither reads what the other learns. The critic waits for what is never below 0, hence for the policy's
            # turns: side by side they need more memory, and see "One order" in docs/multihost.md.
            pieces = _pieces(batch, orders + jnp.minimum(state.skipped, 0), place)
            critic, found = critic_turns(critic, pieces, critic_base(frozen))
            metrics |= found
        state = state.replace(critic=critic)
        # At the first update policy and sampler have the same weights: what differs is arithmetic.
        gap = jax.tree.map(lambda x: x[0], metrics["logprob_gap"]).value()
        facts = {"sampler_gap": gap, "skipped": state.skipped}
        facts |= {"critic/skipped": state.critic.skipped} if state.critic is not None else {}
        return state, {name: m.value() for name, m in over_axis(metrics).items()} | facts

    jitted = jax.jit(learn, donate_argnums=0, out_shardings=(shardings.replace(frozen=None), None))

    def run(state: RlState, batch: dict, seed: int, number: int):
        # The base under an adapter is not donated: the reward model may read the same arrays.
        learned, metrics = jitted(state.replace(frozen=None), batch, np.uint32(seed), np.int32(number), state.frozen)
        return learned.replace(frozen=state.frozen), metrics

    run.compiled = jitted  # for `rlaif plan`
    return run
