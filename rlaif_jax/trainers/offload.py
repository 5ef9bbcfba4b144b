"""What of an RL stage may be kept in the host's memory between its uses: optimizer states, and a reference that never changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from rlaif_jax.sharding.memory import on_device, on_host
from rlaif_jax.trainers.rl_types import RlBatch, RlState
from rlaif_jax.trainers.update import shardings_of

UpdateFn = Callable[[RlState, RlBatch, int, int], tuple[RlState, dict]]


def to_host(tree: Any) -> Any:
    """The arrays in the host's memory, with the same shardings."""
    return jax.device_put(tree, on_host(shardings_of(tree)))


def to_devices(tree: Any) -> Any:
    """The arrays on the devices again."""
    return jax.device_put(tree, on_device(shardings_of(tree)))


def optimizers_on_host(shardings: RlState) -> RlState:
    """Shardings of a state with those of the optimizer states, policy's and critic's, in the host's memory."""
    return _replaced(shardings, on_host(_optimizers(shardings)))


def with_optimizers_on_host(update: UpdateFn) -> UpdateFn:
    """The update of a state whose optimizer states are in the host's memory: they are on the devices for the update only."""

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
