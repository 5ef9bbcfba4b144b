"""Direct preference optimization: trains the policy on pairs, without a reward model or sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlaif_jax.algorithms import losses
from rlaif_jax.algorithms.mean import Mean, Metrics
from rlaif_jax.models import transformer
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.sharding.placement import Placement
from rlaif_jax.trainers.config import DpoConfig


def answer_logprobs(
    params: Any, batch: dict[str, jax.Array], cfg: ModelConfig, per_token: bool, place: Placement | None = None
) -> jax.Array:
    """(B, 2) log-probs in nats of the two answers of each pair, EOS included: summed over tokens, or their mean if `per_token`.

    batch: tokens, segment_ids, positions, loss_mask (B, 2, T). The chosen answer comes first; loss_mask is 1 on answer tokens.
    """
    flat = {k: batch[k].reshape(-1, batch[k].shape[-1]) for k in ("tokens", "segment_ids", "positions", "loss_mask")}
    hidden = transformer.forward(params, cfg, flat["tokens"], flat["segment_ids"], flat["positions"], place)
    logp, _ = transformer.logprobs(params, cfg, hidden[:, :-1], flat["tokens"][:, 1:])
    mask = flat["loss_mask"][:, 1:]
    total = jnp.sum(jnp.where(mask > 0, logp, 0.0), axis=1)
    return (total / jnp.maximum(jnp.sum(mask, axis=1), 1.0) if per_token else total).reshape(-1, 2)


def dpo_loss(
    params: Any, batch: dict[str, jax.Array], cfg: ModelConfig, dpo: DpoConfig, place: Placement | None = None
) -> tuple[Mean, Metrics]:
    """`losses.preference` on a batch of pairs. `batch`: as in `answer_logprobs`, with the reference's ref_logprobs (B, 2)."""
    own = answer_logprobs(params, batch, cfg, dpo.loss == "ipo", place)
    ref = batch["ref_logprobs"]
    weight = batch.get("row_mask", jnp.ones(len(own), jnp.float32))
    loss, metrics = losses.preference(
        own[:, 0], own[:, 1], ref[:, 0], ref[:, 1], weight, beta=dpo.beta, kind=dpo.loss, smoothing=dpo.label_smoothing
    )
    tokens = Mean(jnp.sum(batch["segment_ids"] > 0).astype(jnp.float32), jnp.float32(1.0))
    return loss, metrics | {"tokens": tokens}


def make_with_reference(
    reference: Any, cfg: ModelConfig, dpo: DpoConfig, place: Placement
) -> Callable[[dict[str, jax.Array]], dict[str, jax.Array]]:
    """batch -> batch with ref_logprobs. Jitted; the reference weights are an argument, so they are no constant of the program."""
    run = jax.jit(lambda params, batch: answer_logprobs(params, batch, cfg, dpo.loss == "ipo", place))
    return lambda batch: batch | {"ref_logprobs": run(reference, batch)}
