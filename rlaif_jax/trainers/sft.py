"""Supervised fine-tuning: next-token loss on the response only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlaif_jax.algorithms.mean import Mean, Metrics, mean_of, merge
from rlaif_jax.models import transformer
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.sharding.placement import Placement, global_batch
from rlaif_jax.trainers.loop import StepFn
from rlaif_jax.trainers.update import TrainState


def sft_loss(
    params: Any, batch: dict[str, jax.Array], cfg: ModelConfig, place: Placement | None = None
) -> tuple[Mean, dict[str, Mean]]:
    """Mean negative log-likelihood in nats per response token.

    batch: tokens, segment_ids, positions (B, T) int32; loss_mask (B, T) float32, 1 on tokens to be predicted (each from the
    token before it).
    """
    hidden = transformer.forward(params, cfg, batch["tokens"], batch["segment_ids"], batch["positions"], place)
    logp, _ = transformer.logprobs(params, cfg, hidden[:, :-1], batch["tokens"][:, 1:])
    mask = batch["loss_mask"][:, 1:]
    # "tokens" counts the real tokens read (response and prompt), for throughput.
    tokens = Mean(jnp.sum(batch["segment_ids"] > 0).astype(jnp.float32), jnp.float32(1.0))
    return mean_of(-logp, mask), {"tokens": tokens}


Prepare = Callable[[dict], dict]  # adds what a batch needs once it is on the mesh (log-probs of a reference)


def make_step(
    update: Callable[[TrainState, dict], tuple[TrainState, dict]], place: Placement, prepare: Prepare = lambda batch: batch
) -> StepFn:
    """One supervised step: puts this host's rows onto the mesh, then runs the update."""

    def step(state: TrainState, batch: dict, _: int) -> tuple[TrainState, dict]:
        return update(state, prepare(global_batch(batch, place)))

    return step


def make_evaluate(
    loss_fn: Callable[[Any, dict], Any], batches: Callable[[], Iterable[dict]], place: Placement,
    prepare: Prepare = lambda batch: batch,
) -> Callable[[TrainState], dict[str, float]]:  # fmt: skip
    """evaluate(state) -> {"loss", ...}: exact means over an evaluation set, in which every row counts once.

    Where `loss_fn` has a "loss" among its metrics, that is taken, since a sum of several means is not a mean of rows.
    """

    @jax.jit
    def one(params, frozen, batch):
        loss, metrics = loss_fn(params, batch) if frozen is None else loss_fn(params, batch, frozen=frozen)
        return {"loss": loss} | {k: v for k, v in metrics.items() if k != "tokens"}

    def evaluate(state: TrainState) -> dict[str, float]:
        total: Metrics | None = None
        for batch in batches():
            sums = jax.device_get(one(state.params, state.frozen, prepare(global_batch(batch, place))))
            total = sums if total is None else merge(total, sums)
        return {name: float(m.value()) for name, m in total.items() if np.any(m.weight > 0)}

    return evaluate
