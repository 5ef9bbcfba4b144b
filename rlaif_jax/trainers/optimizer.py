"""AdamW or Adafactor with a schedule, clipping and a decay mask, from the config (optax)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from rlaif_jax.errors import UserError
from rlaif_jax.trainers import int8_adam, low_memory


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Adafactor with a schedule.

    Attributes:
      learning_rate: the peak.
      schedule: after the warm-up: "constant", "linear" or "cosine", down to `final_ratio` * peak at the last step.
      warmup: share of all steps over which the rate rises to the peak.
      final_ratio: see `schedule`.
      weight_decay: of matrices; norms and biases are not decayed.
      beta1, beta2: decay of Adam's first and second moment.
      epsilon: added to the root of the second moment.
      clip_norm: bound on the global norm of the gradients.
      moments: how Adam's two moments are kept: "float32" (8 bytes per parameter), "bfloat16" (4, rounded
        stochastically), "int8" (2 to 2.25: in blocks with a scale each, see `int8_adam`), or "factored": Adafactor's
        (arXiv 1804.04235), rows and columns in place of the second, the first in bfloat16 (2 bytes); `beta2` is then
        not used.
      masters: of bfloat16 parameters (`model.param_dtype`) the optimiser keeps a float32 copy (4 bytes) and rounds it.
        False: it has none, and every update is rounded stochastically instead.
    """

    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: float = 0.03
    final_ratio: float = 0.1
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    moments: str = "float32"
    masters: bool = True

    def __post_init__(self):
        if self.schedule not in ("constant", "linear", "cosine"):
            raise UserError(f"optimizer.schedule is {self.schedule!r}; expected constant, linear or cosine")
        if self.moments not in ("float32", "bfloat16", "int8", "factored"):
            raise UserError(f"optimizer.moments is {self.moments!r}; expected float32, bfloat16, int8 or factored")


def schedule(cfg: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate at each step of a run of that many steps."""
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
    """True for matrices; norms, biases and other vectors are not decayed (stacked ones are named, hence by name)."""

    def decays(path, _):
        name = path[-1].key
        return not (name.endswith(("norm", "bias")) or name == "score")

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(cfg: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW (arXiv 1711.05101) or Adafactor; parameters in bfloat16 as `cfg.masters` says."""
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
