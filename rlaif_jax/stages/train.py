"""The stages that train one model on rows of text: SFT, the embedded feedback model, reward model, grader, DPO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax

from rlaif_jax.feedback.verdicts import BAD, GOOD
from rlaif_jax.models import heads
from rlaif_jax.run.data import RunData
from rlaif_jax.run.folder import Run
from rlaif_jax.run.models import RunModels
from rlaif_jax.sharding.hosts import on_first
from rlaif_jax.trainers import dpo, loop, sft
from rlaif_jax.trainers.config import RewardConfig, TrainConfig
from rlaif_jax.trainers.embedded_judge import feedback_loss
from rlaif_jax.trainers.optimizer import make_optimizer
from rlaif_jax.trainers.reward import label_loss, pair_loss
from rlaif_jax.trainers.trainable import train_state
from rlaif_jax.trainers.update import make_update


def run_tokenizer(x: Run) -> Mapping[str, Any]:
    """Writes the bundled corpus where none is given; trains or copies the tokenizer."""
    data = RunData(x)

    def make() -> dict[str, Any]:
        return data.prepare() | {"tokens": data.make_tokenizer().vocab_size}

    return on_first(make, "tokenizer")


def _train_scalar(x: Run, name: str, cfg: RewardConfig, seed: int) -> Mapping[str, Any]:
    """Trains the reward model or the grader."""
    x.require("tokenizer", cfg.init if cfg.init == "feedback" else "sft")
    data, models = RunData(x), RunModels(x)
    tokenizer, model = models.tokenizer, models.config
    batches, evaluation_batches, facts = data.scalar_batches(cfg, tokenizer, seed)
    if cfg.loss == "bradley_terry":
        loss_fn = partial(pair_loss, cfg=model, centring=cfg.centring, place=x.place)
    else:
        loss_fn = partial(label_loss, cfg=model, place=x.place)

    params = {"model": models.policy(cfg.init), "head": heads.zero_head(model)}
    state, shardings, update, loss_fn = _trainer(x, cfg.train, params, loss_fn)
    stage = _stage(x, name, cfg.train, lambda m: m["accuracy"])
    evaluate = sft.make_evaluate(loss_fn, evaluation_batches, x.place)
    state = loop.fit(stage, state, shardings, batches, sft.make_step(update, x.place), evaluate)
    return facts | RunModels(x).selected(name, cfg.train)


def _trainer(x: Run, train: TrainConfig, params, loss_fn):
    """State, shardings, update, and the loss of what is trained: `params`, or with a lora section an adapter over them."""
    optimizer, models = make_optimizer(train.optimizer, train.steps), RunModels(x)
    loss_fn, key = models.trainable.loss(loss_fn), jax.random.key(x.cfg.seed)
    state, shardings = train_state(models.trainable, models.config, params, optimizer, x.place, key=key)
    return state, shardings, make_update(loss_fn, optimizer, shardings, train.accumulation), loss_fn


def _stage(x: Run, name: str, train: TrainConfig, score: Callable[[dict], float]) -> loop.Stage:
    return loop.Stage(name, x.folder(name), train, x.console, score, x.cfg.logging.wandb_project)


def run_feedback(x: Run) -> Mapping[str, Any]:
    """The embedded feedback model: from the SFT policy, on transcripts of every role and pairs of verdicts."""
    x.require("sft")
    data, models, cfg = RunData(x), RunModels(x), x.cfg.feedback
    words = tuple(models.tokenizer.encode_response(word)[0] for word in (GOOD, BAD))
    loss_fn = partial(feedback_loss, cfg=models.config, words=words, place=x.place)
    state, shardings, update, loss_fn = _trainer(x, cfg.train, models.policy("sft"), loss_fn)
    batches, evaluation_batches, facts = data.feedback_batches(models.tokenizer)
    evaluate = sft.make_evaluate(loss_fn, evaluation_batches, x.place)
    stage = _stage(x, "feedback", cfg.train, lambda m: m["accuracy"])
    loop.fit(stage, state, shardings, batches, sft.make_step(update, x.place), evaluate)
    return facts | RunModels(x).selected("feedback", cfg.train)


def run_sft(x: Run) -> Mapping[str, Any]:
    """Supervised fine-tuning from fresh weights, or from those of `model.init_from`."""
    x.require("tokenizer")
    data, models, cfg = RunData(x), RunModels(x), x.cfg.sft
    loss_fn = partial(sft.sft_loss, cfg=models.config, place=x.place)
    state, shardings, update, loss_fn = _trainer(x, cfg.train, models.policy("base"), loss_fn)
    batches, evaluation_batches, facts = data.sft_batches(models.tokenizer)
    evaluate = sft.make_evaluate(loss_fn, evaluation_batches, x.place)
    stage = _stage(x, "sft", cfg.train, lambda m: -m["loss"])
    loop.fit(stage, state, shardings, batches, sft.make_step(update, x.place), evaluate)
    return facts | RunModels(x).selected("sft", cfg.train)


def run_reward(x: Run) -> Mapping[str, Any]:
    """The reward model that RL maximises."""
    return _train_scalar(x, "reward", x.cfg.reward, x.cfg.seed + 1)


def run_grader(x: Run) -> Mapping[str, Any]:
    """An evaluator of its own, on data that the reward model never saw; never a training signal."""
    return _train_scalar(x, "grader", x.cfg.grader, x.cfg.seed + 2)


def run_dpo(x: Run) -> Mapping[str, Any]:
    """The baseline without RL: the SFT policy trained on the reward model's pairs (DPO or IPO)."""
    x.require("sft")
    data, models, cfg = RunData(x), RunModels(x), x.cfg.dpo
    reference = models.policy("sft")
    loss_fn = partial(dpo.dpo_loss, cfg=models.config, dpo=cfg, place=x.place)
    state, shardings, update, loss_fn = _trainer(x, cfg.train, models.policy("sft"), loss_fn)
    batches, evaluation_batches, facts = data.pair_batches(cfg, models.tokenizer, x.cfg.seed + 3)
    with_reference = dpo.make_with_reference(reference, models.config, cfg, x.place)
    evaluate = sft.make_evaluate(loss_fn, evaluation_batches, x.place, with_reference)
    stage = _stage(x, "dpo", cfg.train, lambda m: m["accuracy"])
    loop.fit(stage, state, shardings, batches, sft.make_step(update, x.place, with_reference), evaluate)
    return facts | RunModels(x).selected("dpo", cfg.train)
