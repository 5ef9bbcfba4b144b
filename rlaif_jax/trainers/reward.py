"""Losses of scalar models: Bradley-Terry on pairs, cross-entropy on labelled responses."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rlaif_jax.algorithms import losses
from rlaif_jax.algorithms.mean import Mean
from rlaif_jax.models import heads
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.sharding.placement import Placement


def _weight(batch: dict[str, jax.Array], rows: int) -> jax.Array:
    return batch.get("row_mask", jnp.ones((rows,), jnp.float32))


def pair_loss(
    params: Any, batch: dict[str, jax.Array], cfg: ModelConfig, centring: float, place: Placement | None = None
) -> tuple[Mean, dict[str, Mean]]:
    """Bradley-Terry loss. batch: tokens, segment_ids, positions (B, 2, T), the chosen response first; margin (B,)."""
    rows = batch["tokens"].shape[0]

    def flat(name):  # one forward pass for both responses of all pairs
        return batch[name].reshape(2 * rows, -1)

    scores = heads.scores(params, cfg, flat("tokens"), flat("segment_ids"), flat("positions"), place).reshape(rows, 2)
    loss, metrics = losses.bradley_terry(
        scores[:, 0], scores[:, 1], batch["margin"], _weight(batch, rows), centring
    )  # fmt: skip
    return loss, metrics | {"tokens": _tokens(batch)}


def label_loss(
    params: Any, batch: dict[str, jax.Array], cfg: ModelConfig, place: Placement | None = None
) -> tuple[Mean, dict[str, Mean]]:
    """Binary cross-entropy. batch: tokens, segment_ids, positions (B, T); label (B,), 0 or 1."""
    scores = heads.scores(params, cfg, batch["tokens"], batch["segment_ids"], batch["positions"], place)
    loss, metrics = losses.binary_cross_entropy(scores, batch["label"], _weight(batch, scores.shape[0]))
    return loss, metrics | {"tokens": _tokens(batch)}


def _tokens(batch: dict[str, jax.Array]) -> Mean:
    return Mean(jnp.sum(batch["segment_ids"] > 0).astype(jnp.float32), jnp.float32(1.0))
