"""AdamW with a schedule, clipping and a decay mask, from the config (optax)."""

from __future__ import annotations

import dataclasses

import jax
import optax

from rlaif_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """`warmup` is a share of all steps; `schedule` runs from the peak to `final_ratio` * peak over the rest."""

    learning_rate: float = 1e-3
    schedule: str = "cosine"  # constant | linear | cosine
    warmup: float = 0.03
    final_ratio: float = 0.1
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    clip_norm: float = 1.0

    def __post_init__(self):
        if self.schedule not in ("constant", "linear", "cosine"):
            raise UserError(f"optimizer.schedule is {self.schedule!r}; expected constant, linear or cosine")


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
    """Clip by global norm, then AdamW (arXiv 1711.05101)."""
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm),
        optax.adamw(schedule(cfg, steps), cfg.beta1, cfg.beta2, cfg.epsilon, 0.0, None, cfg.weight_decay, decay_mask),
    )
