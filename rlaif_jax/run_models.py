"""The models of one run, restored from its stages' checkpoints onto its mesh."""

from __future__ import annotations

import functools
from typing import Any

import jax

from rlaif_jax.checkpoint import Checkpoints, abstract_like
from rlaif_jax.config import RewardConfig, TrainConfig
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.experiment import Experiment
from rlaif_jax.metrics import read_metrics
from rlaif_jax.models import heads, transformer
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.rewards.base import RewardFn
from rlaif_jax.rewards.reward_model import make_reward_model


class RunModels:
    """Policy, reward model and grader by stage name."""

    def __init__(self, experiment: Experiment):
        self._x = experiment

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return Tokenizer.load(self._x.folder("tokenizer") / "tokenizer")

    @functools.cached_property
    def config(self) -> ModelConfig:
        """The policy's shapes, with the vocabulary of the tokenizer."""
        return self._x.cfg.model.with_vocab(self.tokenizer.vocab_size)

    def fresh_policy(self) -> Any:
        """Initial weights from the run's seed (to be called under jit)."""
        return transformer.init(self.config, jax.random.key(self._x.cfg.seed))

    def policy(self, stage: str) -> Any:
        """Weights of "base" (as initialised), "sft" or "rl", in their shardings."""
        axes = transformer.logical_axes(self.config)
        abstract = jax.eval_shape(self.fresh_policy)
        shardings = self._x.place.tree(axes, abstract)
        if stage == "base":
            return jax.jit(self.fresh_policy, out_shardings=shardings)()
        return self._restore(stage, self._train(stage), abstract_like(abstract, shardings))

    def reward(self, stage: str, batch_size: int) -> RewardFn:
        """The reward function of the stage "reward" or "grader", scoring `batch_size` rows at a time."""
        cfg: RewardConfig = getattr(self._x.cfg, stage)
        abstract = jax.eval_shape(lambda: heads.init(self.config, jax.random.key(0)))
        shardings = self._x.place.tree(heads.logical_axes(self.config), abstract)
        params = self._restore(stage, cfg.train, abstract_like(abstract, shardings))
        return make_reward_model(params, self.config, self.tokenizer, cfg.max_length, self._x.place, batch_size)

    def selected(self, stage: str, train: TrainConfig) -> dict[str, Any]:
        """The checkpoint that the stage hands on: its step and held-out metrics."""
        checkpoints = Checkpoints(self._x.folder(stage) / "checkpoints", train.keep_last)
        step = checkpoints.selected_step(train.select)
        checkpoints.close()
        held_out = {}
        for row in read_metrics(self._x.folder(stage) / "metrics.jsonl"):
            if row["step"] == step:
                held_out |= {k: v for k, v in row.items() if k.startswith("eval/")}
        return {"step": step, **held_out}

    def _train(self, stage: str) -> TrainConfig:
        return getattr(self._x.cfg, stage).train

    def _restore(self, stage: str, train: TrainConfig, abstract: Any) -> Any:
        self._x.require(stage)
        checkpoints = Checkpoints(self._x.folder(stage) / "checkpoints", train.keep_last)
        params = checkpoints.restore_params(checkpoints.selected_step(train.select), abstract)
        checkpoints.close()
        return params
