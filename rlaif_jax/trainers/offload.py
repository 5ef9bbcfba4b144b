"""What RL needs once a step waits in the host's memory meanwhile: the optimisers' states, and a reference that never changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from rlaif_jax.sharding.memory import on_device, on_host
from rlaif_jax.trainers.rl import RlState


def optimizers_on_host(state: RlState) -> RlState:
    """Shardings of a state with those of the optimisers' states, policy's and critic's, on the host."""
    return _replaced(state, on_host(_optimizers(state)))


def with_optimizers_on_host(learn: Callable[..., tuple[RlState, dict]], shardings: RlState) -> Callable[..., tuple[RlState, dict]]:
    """learn of a state that waits as `optimizers_on_host(shardings)`: the optimisers' states are brought and taken back."""
    there = on_host(_optimizers(shardings))
    here = on_device(there)

    def run(state: RlState, batch: dict, seed: int, number: int) -> tuple[RlState, dict]:
        state = _replaced(state, jax.device_put(_optimizers(state), here))
        state, metrics = learn(state, batch, seed, number)
        return _replaced(state, jax.device_put(_optimizers(state), there)), metrics

    return run


def _optimizers(state: RlState) -> tuple[Any, Any]:
    return state.opt_state, None if state.critic is None else state.critic.opt_state


def _replaced(state: RlState, optimizers: tuple[Any, Any]) -> RlState:
    critic = state.critic if state.critic is None else state.critic.replace(opt_state=optimizers[1])
    return state.replace(opt_state=optimizers[0], critic=critic)
