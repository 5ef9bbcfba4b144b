"""Builds the optax optimizer of a config: AdamW or Adafactor with a schedule, clipping and a decay mask."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from rlaif_jax.errors import UserError
from rlaif_jax.ranges import Positive, Range, Share, ShareBelowOne, check_fields
from rlaif_jax.trainers import int8_adam, low_memory


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Adafactor with a schedule.

    Attributes:
      learning_rate: peak learning rate.
      schedule: learning rate after the warm-up: "constant", or "linear" or "cosine" decay to final_ratio * learning_rate.
      warmup: share of all updates over which the learning rate rises from 0 to its peak.
      final_ratio: learning rate of the last update, as a share of the peak (for "linear" and "cosine").
      weight_decay: applied to matrices; norms and biases are not decayed.
      beta1, beta2: decay rates of Adam's first and second moment.
      epsilon: added to the square root of the second moment.
      clip_norm: limit on the global norm of the gradients.
      moments: format of Adam's two moments: "float32" (8 bytes per parameter), "bfloat16" (4 bytes, rounded stochastically), "int8"
        (2 to 2.25 bytes, in blocks that share a scale) or "factored" (2 bytes: Adafactor, arXiv 1804.04235; the first moment in
        bfloat16, the second as row and column sums; `beta2` is not used).
      masters: for bfloat16 parameters (`model.param_dtype`) keep a float32 copy (4 bytes), update it, and round it to get the
        parameter. False: no copy; every update is rounded stochastically.
    """

    learning_rate: Annotated[float, Range(0, 10)] = 1e-3
    schedule: str = "cosine"
    warmup: Share = 0.03
    final_ratio: Share = 0.1
    weight_decay: Annotated[float, Range(0, 10)] = 0.01
    beta1: ShareBelowOne = 0.9
    beta2: ShareBelowOne = 0.99
    epsilon: Annotated[float, Range(0, 1, above=True)] = 1e-8
    clip_norm: Positive = 1.0
    moments: str = "float32"
    masters: bool = True

    def __post_init__(self):
        check_fields(self)
        if self.schedule not in ("constant", "linear", "cosine"):
            raise UserError(f"optimizer.schedule is {self.schedule!r}; expected constant, linear or cosine")
        if self.moments not in ("float32", "bfloat16", "int8", "factored"):
            raise UserError(f"optimizer.moments is {self.moments!r}; expected float32, bfloat16, int8 or factored")


def schedule(cfg: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate at each of `steps` updates."""
    warmup = max(round(cfg.warmup * steps), 1)
    rest = max(steps - warmup, 1)
    after = {
        "constant": lambda: optax.constant_schedule(cfg.learning_rate),
        "linear": lambda: optax.linear_schedule(cfg.learning_rate, cfg.final_ratio * cfg.learning_rate, rest),
        "cosine": lambda: optax.cosine_decay_schedule(cfg.learning_rate, rest, cfg.final_ratio),
    }[cfg.schedule]()
    ramp = optax.linear_schedule(cfg.learning_rate / warmup, cfg.learning_rate, max(warmup - 1, 1))
    return optax.join_schedules([ramp, after], [warmup])


def decay_mask(params: dict) -> dict:
    """True where weights are decayed: matrices, not vectors. Chosen by name, since stacked vectors have two axes."""

    def decays(path, _):
        name = path[-1].key
        return not (name.endswith(("norm", "bias")) or name == "score")

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(cfg: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW (arXiv 1711.05101) or Adafactor; for bfloat16 parameters see `OptimizerConfig.masters`."""
    rate = schedule(cfg, steps)
    if cfg.moments == "float32":
        rule = optax.adamw(rate, cfg.beta1, cfg.beta2, cfg.epsilon, 0.0, None, cfg.weight_decay, decay_mask)
    else:
        adam = int8_adam.scale_by_adam if cfg.moments == "int8" else low_memory.scale_by_adam
        scaled = [adam(cfg.beta1, cfg.beta2, cfg.epsilon)]
        if cfg.moments == "factored":
            first = optax.ema(cfg.beta1, accumulator_dtype=jnp.bfloat16)
            scaled = [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), first]
        decay = optax.add_decayed_weights(cfg.weight_decay, decay_mask)
        rule = optax.chain(*scaled, decay, optax.scale_by_learning_rate(rate))
    rule = optax.chain(optax.clip_by_global_norm(cfg.clip_norm), rule)
    return low_memory.with_masters(rule) if cfg.masters else low_memory.with_rounding(rule)
