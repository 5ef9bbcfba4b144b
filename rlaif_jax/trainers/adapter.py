"""Training an adapter over frozen weights: the state, and a loss of whole models as a loss of adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from rlaif_jax.models import lora as lora_lib
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.sharding.placement import Placement
from rlaif_jax.trainers.update import LossFn, TrainState, state_of


def adapted(loss_fn: LossFn, lora: LoraConfig) -> Callable[..., Any]:
    """loss(trained, batch, frozen=base): the loss of the base with its adapter, differentiated by the adapter alone."""

    def loss(trained: Any, batch: dict, frozen: Any):
        return loss_fn(lora_lib.apply_lora(frozen, trained, lora), batch)

    return loss


def adapter_state(
    params: dict, axes: dict, cfg: ModelConfig, lora: LoraConfig, optimizer: optax.GradientTransformation, place: Placement,
    key: jax.Array,
) -> tuple[TrainState, TrainState]:  # fmt: skip
    """A state that trains a fresh adapter, and a scalar model's head whole, over `params`; and its shardings.

    `params` is a decoder or {"model": decoder, "head": ...}, as are `axes`.
    """
    trained, trained_axes, base, base_axes = lora_lib.init(cfg, lora, key), lora_lib.logical_axes(cfg, lora), params, axes
    if "head" in params:
        trained, trained_axes = {"model": trained, "head": params["head"]}, {"model": trained_axes, "head": axes["head"]}
        base, base_axes = {"model": params["model"]}, {"model": axes["model"]}
    state, shardings = state_of(trained, trained_axes, optimizer, place)
    return state.replace(frozen=base), shardings.replace(frozen=place.tree(base_axes, base))
