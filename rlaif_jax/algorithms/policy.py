"""The policy loss of PPO and the GRPO family, from log-probs. All float32.

    ratio = exp(log p - log p_old), per token or per sequence
    terms = surrogate(ratio, advantage) * rollout correction + KL - entropy bonus, then aggregated
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from rlaif_jax.algorithms.kl import KlConfig, kl_terms
from rlaif_jax.algorithms.losses import aggregate
from rlaif_jax.algorithms.mean import Max, Mean, Metrics, Min, mean_of
from rlaif_jax.errors import UserError
from rlaif_jax.ranges import Range, Share, SignedWeight, Weight, check_fields

_LOG_RATIO_BOUND = 20.0  # e^20 is far outside any clip, and does not overflow
_SAPO_TEMPERATURES = (1.0, 1.05)  # of positive and negative advantages


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """The policy loss. Defaults are the reference paper's GRPO. The ratio is p / p_old.

    Attributes:
      loss: "clip": the clipped surrogate of PPO (arXiv 1707.06347, eq. 7). "cispo": -advantage * log p, weighted by the clipped
        ratio as a constant, so clipped tokens keep a gradient (arXiv 2506.13585). "sapo": a smooth gate instead of a clip
        (arXiv 2511.20347). "reinforce": -advantage * log p, without a ratio. Or your own function: a callable, "module:name" or
        "file.py:name". `loss(logp, old_logp, advantages, mask, cfg)` returns the terms to minimise; all arrays (B, R).
      importance_level: "token": one ratio per token. "sequence": one ratio per response, the geometric mean over its tokens
        (GSPO, arXiv 2507.18071); use it with aggregation "sequence_mean" and clips of about 3e-4.
      clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]. A larger clip_high lets unlikely tokens grow
        (DAPO, arXiv 2503.14476).
      dual_clip: where the advantage is negative, bounds the loss by dual_clip * |advantage|; must exceed 1 + clip_high (arXiv
        1912.09729). 0 = off.
      aggregation: how per-token terms are averaged: "token_mean", "sequence_mean", "sequence_sum" or "fixed_length"; see
        `losses.aggregate`.
      entropy_coefficient: weight of the entropy bonus; 0 = off.
      rollout_correction: for a sampler whose log-probs differ from the trainer's (another precision or engine). The trainer then
        computes the old log-probs itself, and weights the terms by w = p_old / p_sampler. "token_truncate": w is clipped to the
        bounds (Yao et al. 2025, fengyao.notion.site/off-policy-rl); "token_mask": w is 0 outside them. "sequence_truncate",
        "sequence_mask": the same, w being the product over the response. "geometric_mask": w per token, but 0 for responses whose
        geometric mean is outside the bounds. "none": no weights; the sampler's log-probs serve as the old ones.
      rollout_correction_low, rollout_correction_high: bounds of the weight p_old / p_sampler.
    """

    loss: Callable[..., jax.Array] | str = "clip"
    importance_level: str = "token"
    clip_low: Share = 0.2
    clip_high: Weight = 0.2
    dual_clip: Weight = 0.0
    aggregation: str = "token_mean"
    entropy_coefficient: SignedWeight = 0.0
    rollout_correction: str = "none"
    rollout_correction_low: Weight = 0.0
    rollout_correction_high: Annotated[float, Range(0, 1e12, above=True)] = 2.0

    def __post_init__(self):
        check_fields(self)
        allowed = {
            "loss": ("clip", "cispo", "sapo", "reinforce"),
            "importance_level": ("token", "sequence"),
            "aggregation": ("token_mean", "sequence_mean", "sequence_sum", "fixed_length"),
            "rollout_correction": (
                "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "geometric_mask"
            ),
        }  # fmt: skip
        for field, values in allowed.items():
            own = field == "loss" and (callable(self.loss) or ":" in self.loss)
            if not own and getattr(self, field) not in values:
                raise UserError(f"policy.{field} is {getattr(self, field)!r}; expected one of {', '.join(values)}")
        if self.dual_clip and self.dual_clip <= 1.0 + self.clip_high:
            raise UserError(f"policy.dual_clip is {self.dual_clip}; expected 0 (off) or more than 1 + policy.clip_high")
        if self.importance_level == "sequence" and self.aggregation == "token_mean":
            raise UserError("policy.importance_level=sequence needs another aggregation: set policy.aggregation to sequence_mean")


def surrogate_terms(
    logp: jax.Array, old_logp: jax.Array, advantages: jax.Array, mask: jax.Array, cfg: PolicyConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(terms to minimise, ratio, active clip), all (B, R), from logp, old_logp, advantages and mask (B, R).

    The third is -1 where the ratio was clipped at the lower bound, 1 at the upper one, else 0.
    """
    if isinstance(cfg.loss, str) and ":" in cfg.loss:
        raise UserError(f"policy.loss is the name of a function, {cfg.loss!r}; only `rlaif run` and `rlaif rl` import it")
    log_ratio = jnp.clip(logp - old_logp, -_LOG_RATIO_BOUND, _LOG_RATIO_BOUND)
    if cfg.importance_level == "sequence":
        mean = jnp.sum(log_ratio * mask, axis=1, keepdims=True) / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1.0)
        # The value of the sequence with the gradient of each token (GSPO-token). Their sum is the gradient of the sequence.
        log_ratio = jax.lax.stop_gradient(mean) + logp - jax.lax.stop_gradient(logp)
    ratio = jnp.exp(log_ratio)
    if callable(cfg.loss):
        return cfg.loss(logp, old_logp, advantages, mask, cfg), ratio, jnp.zeros_like(ratio)
    held = jnp.clip(ratio, 1.0 - cfg.clip_low, 1.0 + cfg.clip_high)
    if cfg.loss == "cispo":
        terms = -jax.lax.stop_gradient(held) * advantages * logp
        return terms, ratio, jnp.sign(ratio - held)
    if cfg.loss == "sapo":
        tau = jnp.where(advantages > 0, *_SAPO_TEMPERATURES)
        return -4.0 / tau * jax.nn.sigmoid(tau * (ratio - 1.0)) * advantages, ratio, jnp.zeros_like(ratio)
    if cfg.loss == "reinforce":
        return -advantages * logp, ratio, jnp.zeros_like(ratio)
    terms = -jnp.minimum(ratio * advantages, held * advantages)
    active = jnp.where(held * advantages < ratio * advantages, jnp.sign(ratio - held), 0.0)
    if cfg.dual_clip:
        terms = jnp.where(advantages < 0, jnp.minimum(terms, -cfg.dual_clip * advantages), terms)
    return terms, ratio, active


def correction_weights(
    old_logp: jax.Array, sampler_logp: jax.Array, mask: jax.Array, cfg: PolicyConfig
) -> jax.Array:
    """(B, R) weights p_old / p_sampler, truncated or masked by `cfg.rollout_correction`; without a gradient."""
    if cfg.rollout_correction == "none":
        return jnp.ones_like(old_logp)
    level, how = cfg.rollout_correction.split("_")
    difference = jnp.clip(old_logp - sampler_logp, -_LOG_RATIO_BOUND, _LOG_RATIO_BOUND) * mask
    if level != "token":
        total = jnp.sum(difference, axis=1, keepdims=True)
        if level == "geometric":
            total = total / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1.0)
        difference = jnp.broadcast_to(total, difference.shape)
    weight = jnp.exp(jax.lax.stop_gradient(difference))
    if how == "truncate":
        return jnp.clip(weight, cfg.rollout_correction_low, cfg.rollout_correction_high)
    inside = (weight >= cfg.rollout_correction_low) & (weight <= cfg.rollout_correction_high)
    if level == "geometric":  # the mean only selects responses; each token is weighted by its own ratio
        weight = jnp.exp(jax.lax.stop_gradient(old_logp - sampler_logp) * mask)
    return jnp.where(inside, weight, 0.0)


def policy_loss(
    logp: jax.Array, entropy: jax.Array, cfg: PolicyConfig, kl: KlConfig, *, mask: jax.Array, old_logprobs: jax.Array,
    advantages: jax.Array, ref_logprobs: jax.Array | None = None, sampler_logprobs: jax.Array | None = None,
    kl_coefficient: jax.Array | float | None = None,
) -> tuple[Mean, Metrics]:  # fmt: skip
    """The loss of a batch and its metrics, from the policy's logp and entropy (B, R).

    mask, old_logprobs, advantages (B, R). A KL penalty needs ref_logprobs (B, R) and kl_coefficient (); a rollout correction needs
    sampler_logprobs (B, R).
    """

    def valid(x):  # padding may hold any value: an overflow there would make the gradient NaN (infinity times 0)
        return None if x is None else jnp.where(mask > 0, x, 0.0)

    logp, old, ref, advantages = valid(logp), valid(old_logprobs), valid(ref_logprobs), valid(advantages)
    terms, ratio, active = surrogate_terms(logp, old, advantages, mask, cfg)
    metrics = policy_metrics(logp, entropy, old, mask, ratio=ratio, active=active)
    if sampler_logprobs is not None:  # under a correction the old log-probs are the trainer's own
        metrics["logprob_gap"] = mean_of(jnp.abs(logp - valid(sampler_logprobs)), mask)
    if ref is not None:
        metrics["kl"] = mean_of(kl_terms(logp, ref), mask)
    if cfg.rollout_correction != "none":
        weights = correction_weights(old, valid(sampler_logprobs), mask, cfg)
        terms = terms * weights
        metrics["correction"] = mean_of(weights, mask)
    if kl.in_loss:
        if kl_coefficient is None:
            raise ValueError("a KL term in the loss needs ref_logprobs and kl_coefficient")
        penalty = kl_terms(logp, ref, kl.estimator) * (ratio if kl.unbiased else 1.0)
        terms = terms + kl_coefficient * penalty
    terms = terms - cfg.entropy_coefficient * entropy
    return aggregate(terms, mask, cfg.aggregation, mask.shape[1]), metrics


def policy_metrics(
    logp: jax.Array, entropy: jax.Array, old_logprobs: jax.Array, mask: jax.Array, *, ratio: jax.Array, active: jax.Array
) -> Metrics:
    """How far an update has moved from the sampling policy. All arrays (B, R); `ratio` and `active` come from `surrogate_terms`."""
    return {
        "entropy": mean_of(entropy, mask),
        "clip_ratio/low": mean_of((active < 0).astype(jnp.float32), mask),
        "clip_ratio/high": mean_of((active > 0).astype(jnp.float32), mask),
        "ratio": mean_of(ratio, mask),
        "ratio_max": Max(jnp.max(jnp.where(mask > 0, ratio, -jnp.inf))),
        "ratio_min": Min(jnp.min(jnp.where(mask > 0, ratio, jnp.inf))),
        "approx_kl": mean_of(kl_terms(logp, old_logprobs), mask),
        "logprob_gap": mean_of(jnp.abs(logp - old_logprobs), mask),
    }
