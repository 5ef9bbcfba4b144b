"""Keeping the policy near its reference: estimators of the KL divergence, and its coefficient. All float32."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from rlaif_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class KlConfig:
    """The penalty for leaving the reference. Defaults are the reference paper's (k3 in the loss, 0.001).

    Attributes:
      coef: its weight beta; 0 = off, and then no reference is kept or evaluated.
      place: "loss" (GRPO) or "reward" (PPO: taken off the reward of each token, no gradient through it).
      estimator: k1, k2 or k3, see `kl_terms`. In the loss k1 needs `unbiased`: its own expected gradient is zero.
      unbiased: in the loss, multiply by the importance ratio, so that the expected gradient is that of the KL
        (DeepSeek-V3.2, arXiv 2512.02556).
      target: > 0 makes the coefficient adaptive: it grows while the KL is above the target (arXiv 1909.08593, section 2.2).
      horizon: over how many samples the adaptive coefficient reacts.
      ref_sync_steps: every so many steps the policy becomes the new reference; 0 = never.
    """

    coef: float = 0.001
    place: str = "loss"
    estimator: str = "k3"
    unbiased: bool = False
    target: float = 0.0
    horizon: float = 10_000.0
    ref_sync_steps: int = 0

    def __post_init__(self):
        for field, values in (("place", ("loss", "reward")), ("estimator", ("k1", "k2", "k3"))):
            if getattr(self, field) not in values:
                raise UserError(f"kl.{field} is {getattr(self, field)!r}; expected one of {', '.join(values)}")
        for field in ("coef", "target", "ref_sync_steps"):
            if getattr(self, field) < 0:
                raise UserError(f"kl.{field} is {getattr(self, field)}; expected 0 or more")
        if self.place == "loss" and self.estimator == "k1" and not self.unbiased and self.coef > 0:
            raise UserError(
                "kl.estimator k1 in the loss has an expected gradient of zero: use k2 or k3, set kl.unbiased, "
                "or put it into the reward (kl.place=reward)"
            )

    @property
    def active(self) -> bool:
        """Whether there is a KL term at all."""
        return self.coef > 0

    @property
    def refreshed(self) -> bool:
        """Whether there is a reference that follows the policy."""
        return self.active and self.ref_sync_steps > 0

    @property
    def in_loss(self) -> bool:
        """Whether the loss has a KL term."""
        return self.active and self.place == "loss"

    @property
    def in_reward(self) -> bool:
        """Whether the rewards have one."""
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
    """The coefficient after `samples` samples with this mean KL: x (1 + clip(kl / target - 1, +-0.2) * samples / horizon)."""
    if cfg.target <= 0:
        return coefficient
    error = jnp.clip(kl / cfg.target - 1.0, -0.2, 0.2)
    return coefficient * (1.0 + error * samples / cfg.horizon)
