"""The embedded feedback model: language modelling of every role, and pairs of verdicts that differ in one thing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rlaif_jax.metrics import Mean, mean_of
from rlaif_jax.models import transformer
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.sharding.placement import Placement
from rlaif_jax.trainers.sft import sft_loss


def verdict_loss(
    params: Any, batch: dict[str, jax.Array], cfg: ModelConfig, words: tuple[int, int], place: Placement | None = None
) -> tuple[Mean, dict[str, Mean]]:
    """Per pair: -log sigmoid(gap of the first - gap of the second), and the log-loss of both verdicts, in nats.

    That of the good one counts double: where nothing tells the two apart, P(Good) settles at 2/3, so that a judge in doubt
    does not condemn.

    gap = log P(good word) - log P(bad word) where the verdict begins; the first line of a pair is to be called good.
    batch: tokens, segment_ids, positions, loss_mask (B, 2, T), loss_mask 1 on what the judge says; row_mask (B,)
    optional. `words`: first tokens of the two verdicts.
    """
    flat = {k: v.reshape(-1, v.shape[-1]) for k, v in batch.items() if k != "row_mask"}
    hidden = transformer.forward(params, cfg, flat["tokens"], flat["segment_ids"], flat["positions"], place)
    before = jnp.argmax(flat["loss_mask"] > 0, axis=1) - 1  # the place that predicts the first word of the verdict
    last = jnp.take_along_axis(hidden, before[:, None, None], axis=1)
    said, _ = transformer.logprobs(params, cfg, jnp.repeat(last, 2, axis=1), jnp.tile(jnp.array(words), (len(last), 1)))
    gap = (said[:, 0] - said[:, 1]).reshape(-1, 2)
    own = -2.0 * said[::2, 0] - said[1::2, 1]
    margin = gap[:, 0] - gap[:, 1]
    weight = batch.get("row_mask", jnp.ones(len(margin)))
    terms = jax.nn.softplus(-margin) + own
    right = ((gap[:, 0] > 0).astype(jnp.float32) + (gap[:, 1] <= 0)) / 2
    metrics = {"pair_accuracy": mean_of((margin > 0).astype(jnp.float32), weight), "accuracy": mean_of(right, weight)}
    return mean_of(terms, weight), metrics


def feedback_loss(
    params: Any, batch: dict[str, Any], cfg: ModelConfig, words: tuple[int, int], place: Placement | None = None
) -> tuple[Mean, dict[str, Mean]]:
    """The mean loss of the roles' tokens plus that of the verdict pairs; a part that is absent counts nothing."""
    total, metrics = jnp.float32(0.0), {}
    for name, part in batch.items():
        loss, found = sft_loss(params, part, cfg, place) if name == "roles" else verdict_loss(params, part, cfg, words, place)
        total += loss.total / jnp.maximum(loss.weight, 1.0)
        metrics |= found
    return Mean(total, jnp.float32(1.0)), metrics
