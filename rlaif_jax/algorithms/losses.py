"""Losses as per-token or per-row terms, and how they are summed. All float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlaif_jax.metrics import Mean, mean_of


def clipped_policy_terms(
    logp: jax.Array, old_logp: jax.Array, advantages: jax.Array, clip_low: float, clip_high: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """PPO's clipped surrogate per token (arXiv 1707.06347, eq. 7), to be minimised.

    logp, old_logp (B, R), advantages (B,) or (B, R). Returns terms, ratio and whether the clip was active, all (B, R).
    """
    if advantages.ndim == 1:
        advantages = advantages[:, None]
    ratio = jnp.exp(logp - old_logp)
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    terms = -jnp.minimum(ratio * advantages, clipped * advantages)
    active = (clipped * advantages < ratio * advantages).astype(jnp.float32)
    return terms, ratio, active


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


def aggregate(terms: jax.Array, mask: jax.Array, how: str, max_length: int = 0) -> Mean:
    """Sums per-token terms (B, R) into a Mean.

    token_mean: every token weighs the same (DAPO, arXiv 2503.14476). sequence_mean: the mean over each row's tokens,
    then over rows (GRPO). fixed_length: the sum over tokens divided by rows * max_length (Dr. GRPO).
    A row without tokens counts nowhere.
    """
    terms = jnp.where(mask > 0, terms, 0.0)
    if how == "token_mean":
        return Mean(jnp.sum(terms * mask), jnp.sum(mask))
    lengths = jnp.sum(mask, axis=1)
    rows = jnp.sum(lengths > 0).astype(jnp.float32)
    if how == "sequence_mean":
        return Mean(jnp.sum(jnp.sum(terms * mask, axis=1) / jnp.maximum(lengths, 1.0)), rows)
    if how == "fixed_length":
        return Mean(jnp.sum(terms * mask) / max_length, rows)
    raise ValueError(f"unknown aggregation {how!r}; expected token_mean, sequence_mean or fixed_length")


def bradley_terry(
    chosen: jax.Array, rejected: jax.Array, margin: jax.Array, weight: jax.Array, centring: float = 0.0
) -> tuple[Mean, dict[str, Mean]]:
    """-log sigmoid(chosen - rejected - margin) + centring * (chosen + rejected)^2, scores and weight (B,).

    The first term is Bradley-Terry with Llama 2's margin (arXiv 2307.09288, eq. 2); the second keeps scores around zero
    (arXiv 2312.09244).
    """
    gap = chosen - rejected
    terms = jax.nn.softplus(-(gap - margin)) + centring * (chosen + rejected) ** 2
    metrics = {
        "accuracy": mean_of((gap > 0).astype(jnp.float32), weight),
        "gap": mean_of(gap, weight),
        "score": mean_of((chosen + rejected) / 2, weight),
    }
    return mean_of(terms, weight), metrics


def binary_cross_entropy(score: jax.Array, label: jax.Array, weight: jax.Array) -> tuple[Mean, dict[str, Mean]]:
    """-log P(label) with P(1) = sigmoid(score); score, label (0/1) and weight (B,)."""
    terms = jax.nn.softplus(score) - label * score
    right = ((score > 0) == (label > 0.5)).astype(jnp.float32)
    return mean_of(terms, weight), {"accuracy": mean_of(right, weight)}
