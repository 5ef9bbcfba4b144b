"""Aggregation of per-token terms, and the losses of reward models, DPO and critics. All float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlaif_jax.algorithms.mean import Mean, mean_of


def aggregate(terms: jax.Array, mask: jax.Array, how: str, max_length: int = 0) -> Mean:
    """Sums per-token terms (B, R) into a Mean.

    token_mean: every token weighs the same (DAPO, arXiv 2503.14476). sequence_mean: the mean over each row's tokens,
    then over rows (GRPO, GSPO). sequence_sum: the sum over each row's tokens, then the mean over rows.
    fixed_length: the sum over tokens divided by rows * max_length (Dr. GRPO, arXiv 2503.20783).
    Rows without tokens are left out.
    """
    terms = jnp.where(mask > 0, terms, 0.0)
    if how == "token_mean":
        return Mean(jnp.sum(terms * mask), jnp.sum(mask))
    lengths = jnp.sum(mask, axis=1)
    rows = jnp.sum(lengths > 0).astype(jnp.float32)
    if how == "sequence_mean":
        return Mean(jnp.sum(jnp.sum(terms * mask, axis=1) / jnp.maximum(lengths, 1.0)), rows)
    if how == "sequence_sum":
        return Mean(jnp.sum(terms * mask), rows)
    if how == "fixed_length":
        return Mean(jnp.sum(terms * mask) / max_length, rows)
    raise ValueError(f"unknown aggregation {how!r}; expected token_mean, sequence_mean, sequence_sum or fixed_length")


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


def value_loss(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, mask: jax.Array, clip: float
) -> tuple[Mean, dict[str, Mean]]:
    """Half the squared error of a critic over valid tokens; all arrays (B, R).

    With `clip` > 0, the new value is also clipped to within `clip` of the old one, and the larger of the two errors counts. So
    a larger move gains nothing (PPO's reference implementation; arXiv 2005.12729).
    """
    errors = (values - returns) ** 2
    metrics = {"value": mean_of(values, mask), "value_error": mean_of(errors, mask)}
    if clip > 0:
        clipped = (old_values + jnp.clip(values - old_values, -clip, clip) - returns) ** 2
        metrics["value_clip_fraction"] = mean_of((clipped > errors).astype(jnp.float32), mask)
        errors = jnp.maximum(errors, clipped)
    return mean_of(0.5 * errors, mask), metrics


def preference(
    chosen: jax.Array, rejected: jax.Array, ref_chosen: jax.Array, ref_rejected: jax.Array, weight: jax.Array,
    *, beta: float, kind: str = "sigmoid", smoothing: float = 0.0,
) -> tuple[Mean, dict[str, Mean]]:  # fmt: skip
    """Direct preference optimisation from the log-probs of answers, summed over tokens; all arrays (B,).

    h = (chosen - ref_chosen) - (rejected - ref_rejected); beta * h is the difference of the implicit rewards.
    sigmoid: -log sigmoid(beta h), DPO (arXiv 2305.18290, eq. 7). `smoothing` e is the probability that a label is wrong: the loss
    is then (1 - e) times this, plus e times the loss of the swapped pair (conservative DPO).
    ipo: (h - 1 / (2 beta))^2 (arXiv 2310.12036, eq. 17). Its log-probs are means per token instead of sums, so that beta does
    not depend on the length.
    """
    gap = (chosen - ref_chosen) - (rejected - ref_rejected)
    if kind == "sigmoid":
        terms = (1.0 - smoothing) * jax.nn.softplus(-beta * gap) + smoothing * jax.nn.softplus(beta * gap)
    elif kind == "ipo":
        terms = (gap - 1.0 / (2.0 * beta)) ** 2
    else:
        raise ValueError(f"unknown preference loss {kind!r}; expected sigmoid or ipo")
    metrics = {
        "accuracy": mean_of((gap > 0).astype(jnp.float32), weight),
        "gap": mean_of(beta * gap, weight),
        "reward_chosen": mean_of(beta * (chosen - ref_chosen), weight),
        "reward_rejected": mean_of(beta * (rejected - ref_rejected), weight),
    }
    return mean_of(terms, weight), metrics
