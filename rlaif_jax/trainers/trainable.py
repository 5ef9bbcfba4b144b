"""Which weights of a model a stage trains: all of them, or a LoRA adapter over frozen weights.

    trainable = trainable_of(cfg.lora)
    trained, frozen = trainable.start(model_cfg, params, key)     # frozen is None where all weights are trained
    params = trainable.full_params(frozen, trained)               # full weights, for a forward pass
    loss_fn = trainable.loss(loss_fn)                             # from a loss of full weights to a loss of the trained ones

A model is a decoder, or a scalar model: {"model": decoder, "head": ...}. The head of a scalar model is always trained.
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
    """Trains all weights (`Full`) or an adapter (`Lora`)."""

    @property
    def frozen_base(self) -> bool:
        """Whether the initial weights stay frozen."""

    def axes(self, cfg: ModelConfig, scalar: bool = False) -> tuple[Any, Any]:
        """Logical axis names of the trained and of the frozen weights (None if nothing is frozen)."""

    def start(self, cfg: ModelConfig, params: Any, key: jax.Array) -> tuple[Any, Any]:
        """(trained, frozen) weights from the full weights of a model. `key` initialises an adapter."""

    def full_params(self, frozen: Any, trained: Any) -> Any:
        """Full weights, from frozen and trained ones. Differentiable in both."""

    def loss(self, loss_fn: LossFn) -> LossFn:
        """Turns a loss of full weights into a loss of the trained ones. With a frozen base it takes the keyword `frozen`."""


@dataclasses.dataclass(frozen=True)
class Full:
    """All weights are trained."""

    frozen_base = False

    def axes(self, cfg: ModelConfig, scalar: bool = False) -> tuple[Any, Any]:
        """See `Trainable.axes`; nothing is frozen."""
        return (heads.logical_axes(cfg) if scalar else transformer.logical_axes(cfg)), None

    def start(self, cfg: ModelConfig, params: Any, key: jax.Array) -> tuple[Any, Any]:
        """See `Trainable.start`: all weights are trained, none frozen."""
        return params, None

    def full_params(self, frozen: None, trained: Any) -> Any:
        """The trained weights."""
        return trained

    def loss(self, loss_fn: LossFn) -> LossFn:
        """`loss_fn` itself."""
        return loss_fn


@dataclasses.dataclass(frozen=True)
class Lora:
    """Trains an adapter over frozen weights, and the head of a scalar model."""

    config: LoraConfig
    frozen_base = True

    def axes(self, cfg: ModelConfig, scalar: bool = False) -> tuple[Any, Any]:
        """See `Trainable.axes`: adapter (and head) are trained, the decoder is frozen."""
        adapter, base = lora_lib.logical_axes(cfg, self.config), transformer.logical_axes(cfg)
        return ({"model": adapter, "head": heads.logical_axes(cfg)["head"]}, {"model": base}) if scalar else (adapter, base)

    def start(self, cfg: ModelConfig, params: Any, key: jax.Array) -> tuple[Any, Any]:
        """See `Trainable.start`. The new adapter is zero, so the model's outputs do not change yet; the head is the given one."""
        adapter = lora_lib.init(cfg, self.config, key)
        if "head" not in params:
            return adapter, params
        return {"model": adapter, "head": params["head"]}, {"model": params["model"]}

    def full_params(self, frozen: Any, trained: Any) -> Any:
        """The frozen tree with a `LoraMatrix` for every matrix that has an update, and the trained head."""
        return lora_lib.apply_lora(frozen, trained, self.config)

    def loss(self, loss_fn: LossFn) -> LossFn:
        """loss(trained, batch, frozen=base)."""

        def loss(trained: Any, batch: Any, frozen: Any):
            return loss_fn(self.full_params(frozen, trained), batch)

        return loss


def trainable_of(lora: LoraConfig | None) -> Trainable:
    """`Lora` if the config has a lora section, else `Full`."""
    return Full() if lora is None else Lora(lora)


def scalar_base(frozen: Any) -> Any:
    """The frozen weights of a scalar model that shares another model's frozen decoder; None if there is none."""
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
    """The state that trains a model from these full weights, and its shardings. The update donates the trained weights."""
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
