"""The GRPO objective on given log-probs (arXiv 2402.03300, eq. 3), as sums."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from rlaif_jax.algorithms import losses
from rlaif_jax.errors import UserError
from rlaif_jax.metrics import Mean, mean_of


@dataclasses.dataclass(frozen=True)
class GrpoConfig:
    """Defaults are the reference paper's: group 4, k3 KL in the loss with weight 0.001, clip 0.2, no entropy bonus."""

    group: int = 4
    advantage_scale: str = "group"  # group | batch | none
    aggregation: str = "token_mean"  # token_mean | sequence_mean | fixed_length
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coefficient: float = 0.001
    kl_estimator: str = "k3"  # k2 | k3: k1 has no expected gradient on-policy
    entropy_coefficient: float = 0.0

    def __post_init__(self):
        allowed = {
            "advantage_scale": ("group", "batch", "none"),
            "aggregation": ("token_mean", "sequence_mean", "fixed_length"),
            "kl_estimator": ("k2", "k3"),
        }
        for field, values in allowed.items():
            if getattr(self, field) not in values:
                raise UserError(f"grpo.{field} is {getattr(self, field)!r}; expected one of {', '.join(values)}")
        if self.group < 2:
            raise UserError(f"grpo.group is {self.group}; a group of at least 2 is needed to compare samples")


def grpo_loss(
    logp: jax.Array, entropy: jax.Array, batch: dict[str, jax.Array], cfg: GrpoConfig
) -> tuple[Mean, dict[str, Mean]]:
    """logp, entropy (B, R); batch: mask, old_logprobs, ref_logprobs (B, R), advantages (B,) -> (loss, metrics)."""
    mask = batch["mask"]
    terms, ratio, clipped = losses.clipped_policy_terms(
        logp, batch["old_logprobs"], batch["advantages"], cfg.clip_low, cfg.clip_high
    )
    terms = terms - cfg.entropy_coefficient * entropy
    metrics = {
        "entropy": mean_of(entropy, mask),
        "clip_fraction": mean_of(clipped, mask),
        "ratio": mean_of(ratio, mask),
        "logprob_gap": mean_of(jnp.abs(logp - batch["old_logprobs"]), mask),
    }
    if cfg.kl_coefficient > 0:
        terms = terms + cfg.kl_coefficient * losses.kl_terms(logp, batch["ref_logprobs"], cfg.kl_estimator)
        metrics["kl"] = mean_of(losses.kl_terms(logp, batch["ref_logprobs"], "k3"), mask)
    return losses.aggregate(terms, mask, cfg.aggregation, mask.shape[1]), metrics
