"""The stages that train one model on rows of text: SFT, the embedded feedback model, reward model, grader, DPO.

`run` is what they share; a `Supervised` is what differs: start, loss and data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax

from rlaif_jax.config.stages import DPO, FEEDBACK, GRADER, REWARD, SFT, Stage
from rlaif_jax.data.streams import stream
from rlaif_jax.feedback.verdicts import BAD, GOOD
from rlaif_jax.models import heads
from rlaif_jax.runs.data import RunData
from rlaif_jax.runs.folder import Run
from rlaif_jax.runs.models import BASE, RunModels, start_name
from rlaif_jax.trainers import dpo, loop, sft
from rlaif_jax.trainers.config import RewardConfig
from rlaif_jax.trainers.embedded_judge import feedback_loss
from rlaif_jax.trainers.optimizer import make_optimizer
from rlaif_jax.trainers.reward import label_loss, pair_loss
from rlaif_jax.trainers.trainable import train_state
from rlaif_jax.trainers.update import LossFn, make_update

Held = Callable[[], Iterable[dict]]  # one pass over the held-out rows


@dataclasses.dataclass(frozen=True)
class Supervised:
    """What differs between the supervised stages.

    Attributes:
      start: the weights that it starts from, which it may donate; {"model", "head"} for a scalar model.
      loss: (params, batch) -> (Mean, metrics).
      data: (training batches, held-out pass, facts).
      score: of a checkpoint, from the held-out metrics; higher is better.
      prepare: what a batch still needs once it is on the mesh (the reference's log-probs of DPO).
    """

    start: Any
    loss: LossFn
    data: tuple[loop.Batches, Held, dict[str, Any]]
    score: Callable[[dict[str, float]], float] = lambda metrics: metrics["accuracy"]
    prepare: sft.Prepare = lambda batch: batch


def run(x: Run, stage: Stage) -> Mapping[str, Any]:
    """Trains the stage's model, all of its weights or an adapter, and gives its facts."""
    models = RunModels(x)
    spec = _SPECS[stage.name](x, RunData(x), models)
    train, trainable = stage.train(x.cfg), models.trainable
    batches, held_out, facts = spec.data
    optimizer = make_optimizer(train.optimizer, train.steps)
    loss_fn, key = trainable.loss(spec.loss), jax.random.key(stream(x.cfg.seed, f"{stage.name}/adapter"))
    state, shardings = train_state(trainable, models.config, spec.start, optimizer, x.place, key=key)
    update = make_update(loss_fn, optimizer, shardings, train.grad_accumulation)
    evaluate = sft.make_evaluate(loss_fn, held_out, x.place, spec.prepare)
    step = sft.make_step(update, x.place, spec.prepare)
    job = loop.Job(
        stage.name, x.folder(stage.name), train, x.console, spec.score, x.cfg.logging.wandb_project, partial(x.on_log, stage.name)
    )  # fmt: skip
    loop.fit(job, state, shardings, batches, step, evaluate)
    return facts | models.selected(stage.name)


def _sft(x: Run, data: RunData, models: RunModels) -> Supervised:
    """Supervised fine-tuning from fresh weights, or from those of `model.init_from`."""
    return Supervised(
        models.policy(BASE), partial(sft.sft_loss, cfg=models.config, place=x.place),
        data.sft_batches(models.tokenizer), score=lambda metrics: -metrics["loss"],
    )  # fmt: skip


def _feedback(x: Run, data: RunData, models: RunModels) -> Supervised:
    """The embedded feedback model: from the SFT policy, on transcripts of every role and pairs of verdicts."""
    words = tuple(models.tokenizer.encode_response(word)[0] for word in (GOOD, BAD))
    return Supervised(
        models.policy(SFT.name), partial(feedback_loss, cfg=models.config, words=words, place=x.place),
        data.feedback_batches(models.tokenizer),
    )  # fmt: skip


def _reward(x: Run, data: RunData, models: RunModels) -> Supervised:
    """The reward model that RL maximises."""
    return _scalar(x, data, models, x.cfg.reward, data.seed(REWARD, "rows"))


def _grader(x: Run, data: RunData, models: RunModels) -> Supervised:
    """An independent evaluator, trained on data that no arm learns from; it is never a training signal."""
    return _scalar(x, data, models, x.cfg.grader, data.seed(GRADER, "rows"), grader=True)


def _scalar(x: Run, data: RunData, models: RunModels, cfg: RewardConfig, seed: int, grader: bool = False) -> Supervised:
    if cfg.loss == "bradley_terry":
        loss_fn = partial(pair_loss, cfg=models.config, centring=cfg.center_coef, place=x.place)
    else:
        loss_fn = partial(label_loss, cfg=models.config, place=x.place)
    start = {"model": models.policy(start_name(cfg.init)), "head": heads.zero_head(models.config)}
    batches = data.scalar_batches(cfg, models.tokenizer, seed, grader)
    return Supervised(start, loss_fn, batches)


def _dpo(x: Run, data: RunData, models: RunModels) -> Supervised:
    """The baseline without RL: the SFT policy trained on the reward model's pairs (DPO or IPO)."""
    cfg, model = x.cfg.dpo, models.config
    reference = models.policy(SFT.name)
    return Supervised(
        models.policy(SFT.name), partial(dpo.dpo_loss, cfg=model, dpo=cfg, place=x.place),
        data.pair_batches(cfg, models.tokenizer, data.seed(DPO, "rows")),
        prepare=dpo.make_with_reference(reference, model, cfg, x.place),
    )  # fmt: skip


_SPECS: Mapping[str, Callable[[Run, RunData, RunModels], Supervised]] = {
    SFT.name: _sft, FEEDBACK.name: _feedback, REWARD.name: _reward, GRADER.name: _grader, DPO.name: _dpo,
}  # fmt: skip
