"""Losses of the embedded feedback model: language modelling of every role, and verdicts on pairs of answers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rlaif_jax.algorithms.mean import Mean, Metrics, Sum, mean_of, sum_of
from rlaif_jax.models import ops, transformer
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.sharding.placement import Placement
from rlaif_jax.trainers.sft import sft_loss


def verdict_loss(
    params: Any, batch: dict[str, jax.Array], cfg: ModelConfig, words: tuple[int, int], place: Placement | None = None
) -> tuple[Mean, Metrics]:
    """Cross-entropy of the verdicts in nats: 2 * its mean over Good labels + its mean over Bad labels.

    The factor 2 makes P(Good) = 2/3 where the two cannot be distinguished, so a judge in doubt says Good. P(Good) is
    sigmoid(log P(good word) - log P(bad word)), as in the judge.
    batch: tokens, segment_ids, positions, loss_mask (B, 2, T) of `data.rows.verdict_rows`; loss_mask is 1 on the verdicts.
    `words`: the first token of Good and of Bad.
    """
    flat = {k: v.reshape(-1, v.shape[-1]) for k, v in batch.items() if k != "row_mask"}
    hidden = transformer.forward(params, cfg, flat["tokens"], flat["segment_ids"], flat["positions"], place, shared_prefix=True)
    both = ops.logits(hidden, ops.output_matrix(params, cfg)[jnp.array(words)])
    gap = (both[..., 0] - both[..., 1])[:, :-1]  # where the next word is the verdict
    asked, is_good = flat["loss_mask"][:, 1:], flat["tokens"][:, 1:] == words[0]
    good, bad = asked * is_good, asked * ~is_good
    loss = sum_of((2.0, mean_of(jax.nn.softplus(-gap), good)), (1.0, mean_of(jax.nn.softplus(gap), bad)))
    right = {"good_accuracy": mean_of(gap > 0, good), "bad_accuracy": mean_of(gap <= 0, bad)}
    balanced = sum_of(*((0.5, m) for m in right.values()))
    return Mean(loss.value(), jnp.float32(1.0)), right | {"accuracy": balanced, "loss": loss}


def feedback_loss(
    params: Any, batch: dict[str, Any], cfg: ModelConfig, words: tuple[int, int], place: Placement | None = None
) -> tuple[Mean, Metrics]:
    """The language-modelling loss of the roles plus the loss of the verdicts. A part that the batch lacks adds 0."""
    terms, metrics = [], {}
    for name, part in batch.items():
        loss, found = sft_loss(params, part, cfg, place) if name == "roles" else verdict_loss(params, part, cfg, words, place)
        terms.append(found.pop("loss", sum_of((1.0, loss))))
        metrics |= found
    total = Sum(*(jnp.concatenate([getattr(term, field) for term in terms]) for field in Sum._fields))
    return Mean(total.value(), jnp.float32(1.0)), metrics | {"loss": total}
