"""What a stage trains of a model: all of its weights, or an adapter (LoRA) over weights that stay frozen.

    trainable = trainable_of(cfg.lora)
    trained, frozen = trainable.start(model_cfg, params, key)     # frozen is None where all weights are trained
    params = trainable.full_params(frozen, trained)               # what a forward pass reads
    loss_fn = trainable.loss(loss_fn)                             # a loss of full weights as a loss of what is trained

A model is a decoder, or scalar: {"model": decoder, "head": ...}. Of a scalar model the head is always trained.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import optax

from rlaif_jax.models import heads, transformer
from rlaif_jax.models import lora as lora_lib
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.sharding.placement import Placement, abstract_like
from rlaif_jax.trainers.update import LossFn, TrainState, abstract_state, state_of


class Trainable(Protocol):
    """All weights (`Full`) or an adapter (`Lora`)."""

    @property
    def frozen_base(self) -> bool:
        """Whether the weights that training starts from stay as they are."""

    def axes(self, cfg: ModelConfig, scalar: bool = False) -> tuple[Any, Any]:
        """Logical axis names of what is trained, and of what is frozen (None: nothing)."""

    def start(self, cfg: ModelConfig, params: Any, key: jax.Array) -> tuple[Any, Any]:
        """(trained, frozen) of a model with these full weights; `key` is for fresh adapters."""

    def full_params(self, frozen: Any, trained: Any) -> Any:
        """The weights of the model; gradients flow to what is differentiated."""

    def loss(self, loss_fn: LossFn) -> LossFn:
        """A loss of full weights as a loss of what is trained; with a frozen base it takes `frozen` as a keyword."""


@dataclasses.dataclass(frozen=True)
class Full:
    """All weights are trained."""

    frozen_base = False

    def axes(self, cfg: ModelConfig, scalar: bool = False) -> tuple[Any, Any]:
        """Those of the model, None."""
        return (heads.logical_axes(cfg) if scalar else transformer.logical_axes(cfg)), None

    def start(self, cfg: ModelConfig, params: Any, key: jax.Array) -> tuple[Any, Any]:
        """The weights themselves, None."""
        return params, None

    def full_params(self, frozen: None, trained: Any) -> Any:
        """What is trained."""
        return trained

    def loss(self, loss_fn: LossFn) -> LossFn:
        """The loss itself."""
        return loss_fn


@dataclasses.dataclass(frozen=True)
class Lora:
    """An adapter is trained over frozen weights, and of a scalar model also the head."""

    config: LoraConfig
    frozen_base = True

    def axes(self, cfg: ModelConfig, scalar: bool = False) -> tuple[Any, Any]:
        """Those of the adapter (and head), and of the decoder."""
        adapter, base = lora_lib.logical_axes(cfg, self.config), transformer.logical_axes(cfg)
        return ({"model": adapter, "head": heads.logical_axes(cfg)["head"]}, {"model": base}) if scalar else (adapter, base)

    def start(self, cfg: ModelConfig, params: Any, key: jax.Array) -> tuple[Any, Any]:
        """A fresh adapter, which changes nothing yet, with the given head; and the decoder."""
        adapter = lora_lib.init(cfg, self.config, key)
        if "head" not in params:
            return adapter, params
        return {"model": adapter, "head": params["head"]}, {"model": params["model"]}

    def full_params(self, frozen: Any, trained: Any) -> Any:
        """The frozen tree with a `LoraMatrix` for every matrix that has an update, and the trained head."""
        return lora_lib.apply_lora(frozen, trained, self.config)

    def loss(self, loss_fn: LossFn) -> LossFn:
        """loss(trained, batch, frozen=base), differentiated by what is trained alone."""

        def loss(trained: Any, batch: Any, frozen: Any):
            return loss_fn(self.full_params(frozen, trained), batch)

        return loss


def trainable_of(lora: LoraConfig | None) -> Trainable:
    """An adapter with a lora section, else all weights."""
    return Full() if lora is None else Lora(lora)


def scalar_base(frozen: Any) -> Any:
    """The frozen part of a scalar model over the frozen decoder of another model; None of None."""
    return None if frozen is None else {"model": frozen}


def abstract_params(trainable: Trainable, cfg: ModelConfig, place: Placement, scalar: bool = False) -> tuple[Any, Any]:
    """(trained, frozen) as ShapeDtypeStructs with shardings."""

    def start() -> tuple[Any, Any]:
        key = jax.random.key(0)
        return trainable.start(cfg, (heads.init if scalar else transformer.init)(cfg, key), key)

    shapes = jax.eval_shape(start)
    return tuple(abstract_like(x, place.tree(a, x)) for x, a in zip(shapes, trainable.axes(cfg, scalar), strict=True))


def train_state(
    trainable: Trainable, cfg: ModelConfig, params: Any, optimizer: optax.GradientTransformation, place: Placement, *,
    key: jax.Array,
) -> tuple[TrainState, TrainState]:  # fmt: skip
    """A state that trains a model from these full weights (the update will donate them, where they are trained), and its
    shardings."""
    trained, frozen = trainable.start(cfg, params, key)
    axes, frozen_axes = trainable.axes(cfg, scalar="head" in params)
    state, shardings = state_of(trained, axes, optimizer, place)
    return state.replace(frozen=frozen), shardings.replace(frozen=place.tree(frozen_axes, frozen))


def abstract_train_state(
    trainable: Trainable, cfg: ModelConfig, optimizer: optax.GradientTransformation, place: Placement, scalar: bool = False
) -> TrainState:
    """The state of `train_state` as ShapeDtypeStructs with shardings."""
    trained, frozen = abstract_params(trainable, cfg, place, scalar)
    return abstract_state(trained, trainable.axes(cfg, scalar)[0], optimizer, place).replace(frozen=frozen)
