"""The KL penalty between policy and reference: estimators, and the adaptive coefficient. All float32."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from rlaif_jax.errors import UserError
from rlaif_jax.ranges import CountOrZero, Range, Weight, check_fields


@dataclasses.dataclass(frozen=True)
class KlConfig:
    """The penalty on the KL divergence of the policy from its reference. Defaults: k3 in the loss, 0.001 (the reference paper's).

    Attributes:
      coef: weight beta of the penalty; 0 = off, and then there is no reference model.
      place: "loss" adds it to the loss (GRPO); "reward" subtracts it from the reward of each token, without a gradient (PPO).
      estimator: "k1", "k2" or "k3", see `kl_terms`. In the loss, k1 needs `unbiased`: alone its expected gradient is zero.
      unbiased: in the loss, multiply the penalty by the importance ratio. Its expected gradient is then that of the KL
        (DeepSeek-V3.2, arXiv 2512.02556).
      target: > 0 adapts the coefficient: it grows while the KL is above the target, and shrinks while it is below (arXiv
        1909.08593, section 2.2). 0 = fixed.
      horizon: number of samples over which the adaptive coefficient reacts; a larger one reacts more slowly.
      ref_sync_steps: steps after which the policy becomes the new reference, again and again; 0 = never.
    """

    coef: Weight = 0.001
    place: str = "loss"
    estimator: str = "k3"
    unbiased: bool = False
    target: Weight = 0.0
    horizon: Annotated[float, Range(1, 1e12)] = 10_000.0
    ref_sync_steps: CountOrZero = 0

    def __post_init__(self):
        check_fields(self)
        for field, values in (("place", ("loss", "reward")), ("estimator", ("k1", "k2", "k3"))):
            if getattr(self, field) not in values:
                raise UserError(f"kl.{field} is {getattr(self, field)!r}; expected one of {', '.join(values)}")
        if self.place == "loss" and self.estimator == "k1" and not self.unbiased and self.coef > 0:
            raise UserError(
                "kl.estimator k1 in the loss has an expected gradient of zero: use k2 or k3, set kl.unbiased, "
                "or use kl.place=reward"
            )

    @property
    def active(self) -> bool:
        """Whether there is a KL penalty."""
        return self.coef > 0

    @property
    def refreshed(self) -> bool:
        """Whether the reference is replaced by the policy from time to time."""
        return self.active and self.ref_sync_steps > 0

    @property
    def in_loss(self) -> bool:
        """Whether the KL penalty is in the loss."""
        return self.active and self.place == "loss"

    @property
    def in_reward(self) -> bool:
        """Whether the KL penalty is in the rewards."""
        return self.active and self.place == "reward"


def kl_terms(logp: jax.Array, ref_logp: jax.Array, kind: str = "k3") -> jax.Array:
    """Per-token estimates of KL(policy || reference) from samples of the policy (Schulman, "Approximating KL").

    k1 = log p/q (unbiased; as a loss its expected on-policy gradient is zero), k2 = (log p/q)^2 / 2,
    k3 = q/p - 1 - log q/p (unbiased, never negative).
    """
    difference = logp - ref_logp
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * difference**2
    if kind == "k3":
        return jnp.expm1(-difference) + difference
    raise ValueError(f"unknown KL estimator {kind!r}; expected k1, k2 or k3")


def adapted_coefficient(coefficient: jax.Array, kl: jax.Array, samples: int, cfg: KlConfig) -> jax.Array:
    """The coefficient after `samples` samples with mean `kl`.

    The old one times 1 + clip(kl / target - 1, -0.2, 0.2) * samples / horizon; unchanged without a target.
    """
    if cfg.target <= 0:
        return coefficient
    error = jnp.clip(kl / cfg.target - 1.0, -0.2, 0.2)
    return coefficient * (1.0 + error * samples / cfg.horizon)
