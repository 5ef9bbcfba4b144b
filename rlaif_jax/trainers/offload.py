"""Offloads parts of an RL stage to host memory between their uses: optimizer states, and a reference that never changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from rlaif_jax.sharding.memory import on_device, on_host
from rlaif_jax.trainers.rl_types import RlBatch, RlState
from rlaif_jax.trainers.update import shardings_of

UpdateFn = Callable[[RlState, RlBatch, int, int], tuple[RlState, dict]]


def to_host(tree: Any) -> Any:
    """Copies the arrays to host memory; their partitioning stays the same."""
    return jax.device_put(tree, on_host(shardings_of(tree)))


def to_devices(tree: Any) -> Any:
    """Copies the arrays back to device memory."""
    return jax.device_put(tree, on_device(shardings_of(tree)))


def optimizers_on_host(shardings: RlState) -> RlState:
    """The state's shardings, with the optimizer states of policy and critic in host memory."""
    return _replaced(shardings, on_host(_optimizers(shardings)))


def with_optimizers_on_host(update: UpdateFn) -> UpdateFn:
    """Wraps `update` for optimizer states in host memory: it copies them to the devices before the update and back after it."""

    def run(state: RlState, batch: RlBatch, seed: int, number: int) -> tuple[RlState, dict]:
        state = _replaced(state, to_devices(_optimizers(state)))
        state, metrics = update(state, batch, seed, number)
        return _replaced(state, to_host(_optimizers(state))), metrics

    return run


def _optimizers(state: RlState) -> tuple[Any, Any]:
    return state.opt_state, None if state.critic is None else state.critic.opt_state


def _replaced(state: RlState, optimizers: tuple[Any, Any]) -> RlState:
    critic = state.critic if state.critic is None else state.critic.replace(opt_state=optimizers[1])
    return state.replace(opt_state=optimizers[0], critic=critic)
