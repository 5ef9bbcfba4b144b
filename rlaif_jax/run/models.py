"""The models of one run, restored from its stages' checkpoints onto its mesh."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax

from rlaif_jax.config import FeedbackConfig, RewardConfig, RunConfig, TrainConfig
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.cache import CachedLLM, RecordedLLM
from rlaif_jax.feedback.llm import LLM
from rlaif_jax.feedback.local_llm import LocalLLM
from rlaif_jax.feedback.multihost import AsksOnFirst
from rlaif_jax.feedback.openai_llm import OpenAILLM
from rlaif_jax.feedback.principles import Versions, read_rules
from rlaif_jax.feedback.prompts import Prompts, load_prompts
from rlaif_jax.models import transformer
from rlaif_jax.models.matrices import dense
from rlaif_jax.models.model_config import ModelConfig, preset
from rlaif_jax.models.pretrained import foreign_config, load_policy, load_scalar, resolve, with_numerics
from rlaif_jax.models.quant import keep_layers_in_8_bits
from rlaif_jax.rewards.base import RewardFn
from rlaif_jax.rewards.judge import make_judge
from rlaif_jax.rewards.reward_model import make_reward_model
from rlaif_jax.run.folder import Run
from rlaif_jax.trainers.checkpoint import Checkpoints
from rlaif_jax.trainers.metrics_log import read_metrics
from rlaif_jax.trainers.trainable import Full, Trainable, abstract_params, scalar_base, trainable_of
from rlaif_jax.trainers.update import shardings_of


def feedback_config(cfg: FeedbackConfig, model: ModelConfig) -> ModelConfig:
    """The config of a feedback model on the mesh: what the policy samples with is no business of it."""
    return dataclasses.replace(model, rollout_weights=cfg.weights, kv_cache=cfg.kv_cache)


def planned_feedback(cfg: RunConfig, policy: ModelConfig) -> ModelConfig | None:
    """The config of the feedback model that will lie on the mesh, None if there is none; a folder that is not here yet has
    the shapes of `feedback.preset`."""
    feedback = cfg.feedback
    if feedback is None or feedback.backend not in ("embedded", "folder"):
        return None
    if feedback.backend == "folder" and feedback.preset and not Path(feedback.model).exists():
        policy = dataclasses.replace(with_numerics(preset(feedback.preset), cfg.model), param_dtype="bfloat16")
    elif feedback.backend == "folder":
        policy = foreign_config(feedback.model, cfg.model, scalar=False)
    return feedback_config(feedback, policy)


class RunModels:
    """Policy, reward model and grader by stage name."""

    def __init__(self, experiment: Run):
        self._x = experiment

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return Tokenizer.load(self._x.folder("tokenizer") / "tokenizer")

    @functools.cached_property
    def config(self) -> ModelConfig:
        """The policy's shapes, those of `model.init_from` or with the vocabulary of the tokenizer."""
        return resolve(self._x.cfg.model).with_vocab(self.tokenizer.vocab_size)

    def fresh_policy(self) -> Any:
        """Initial weights from the run's seed (to be called under jit)."""
        return transformer.init(self.config, jax.random.key(self._x.cfg.seed))

    def policy(self, stage: str) -> Any:
        """Weights of "base" (as initialised), "sft", "feedback", "dpo", "rl" or "rl_judge", in their shardings.

        Without an SFT stage "sft" is "base". Every call gives arrays of its own, which may be donated. Adapters are
        merged into the weights that their stage started from.
        """
        if stage == "sft" and self._x.cfg.sft is None:
            stage = "base"
        if stage == "base" and self._x.cfg.model.init_from:
            return load_policy(self._x.cfg.model.init_from, self.config, self._x.place)
        axes = transformer.logical_axes(self.config)
        shardings = self._x.place.tree(axes, jax.eval_shape(self.fresh_policy))
        if stage == "base":
            return jax.jit(self.fresh_policy, out_shardings=shardings)()
        if not self.trainable.frozen_base:
            return self.trained(stage)
        return self._merged(self.policy("base" if stage == "sft" else "sft"), self.trained(stage), shardings)

    def scalar(self, stage: str) -> Any:
        """Weights of the stage "reward" or "grader", decoder and head, in their shardings."""
        trained = self.trained(stage)
        if not self.trainable.frozen_base:
            return trained
        shardings = shardings_of(abstract_params(Full(), self.config, self._x.place, scalar=True)[0])
        return self._merged({"model": self.policy(getattr(self._x.cfg, stage).init)}, trained, shardings)

    def adapter(self, stage: str) -> Any:
        """What a stage trained over frozen weights: an adapter, or {"model": adapter, "head"} of a scalar model."""
        if not self.trainable.frozen_base:
            raise UserError("the run has no lora section: its stages trained all weights")
        return self.trained(stage)

    @property
    def trainable(self) -> Trainable:
        """What the run's stages train of a model."""
        return trainable_of(self._x.cfg.lora)

    def trained(self, stage: str) -> Any:
        """What a stage trained, in its shardings: all weights, or an adapter (and the head of a scalar model)."""
        if stage in ("reward", "grader") and getattr(self._x.cfg, stage).folder:
            raise UserError(f"{stage} is the model of a folder, not trained in this run")
        wanted, _ = abstract_params(self.trainable, self.config, self._x.place, scalar=stage in ("reward", "grader"))
        return self._restore(stage, self._train(stage), wanted)

    def _merged(self, base: Any, trained: Any, shardings: Any) -> Any:
        def merge(base: Any, trained: Any) -> Any:
            return dense(self.trainable.full_params(base, trained))

        return jax.jit(merge, donate_argnums=0, out_shardings=shardings)(base, trained)

    def reward(self, stage: str, batch_size: int, base: Any = None) -> RewardFn:
        """The reward function of the stage "reward" or "grader", scoring `batch_size` rows at a time.

        `base`, the SFT policy's weights, which somebody holds and keeps, serves an adapter that was trained over them, too:
        one copy is in memory.
        """
        cfg: RewardConfig = getattr(self._x.cfg, stage)
        if cfg.folder:
            model = foreign_config(cfg.folder, self._x.cfg.model, scalar=True)
            params, tokenizer = load_scalar(cfg.folder, model, self._x.place), Tokenizer.load(cfg.folder)
            return make_reward_model(params, model, tokenizer, cfg.max_length, self._x.place, batch_size, whole_chat=True)
        if base is not None and self._x.cfg.shares_base(stage):
            params = self.trainable.full_params(scalar_base(base), self.trained(stage))
        else:
            params = self.scalar(stage)
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

    def as_llm(self, stage: str, batch_size: int) -> LocalLLM:
        """The policy of a stage as a language model for candidates and feedback."""
        params, model, note = self.policy(stage), self.config, ""
        if stage == "feedback":
            model = feedback_config(self._x.cfg.feedback, model)
            if model.rollout_weights == "int8":
                params, note = keep_layers_in_8_bits(params, transformer.logical_axes(model), self._x.place), " int8"
        trained = stage != "base" and not (stage == "sft" and self._x.cfg.sft is None)
        selected = f"{stage}@{self.selected(stage, self._train(stage))['step']}" if trained else "base"
        return LocalLLM(
            params, model, self.tokenizer, self._x.place, name=f"{self._x.cfg.name}/{selected}{note}", batch_size=batch_size
        )  # fmt: skip

    @functools.cached_property
    def feedback(self) -> LLM:
        """Who gives the feedback, as `feedback.backend` says; replies of a chat API are kept in the run's cache."""
        cfg = self._x.cfg.feedback
        if cfg is None:
            raise UserError("the config has no feedback section; see configs/greetings_demo.py for one")
        if cfg.backend == "recorded":
            return RecordedLLM(cfg.transcript, cfg.model)
        if cfg.backend == "folder":
            model = feedback_config(cfg, foreign_config(cfg.model, self._x.cfg.model, scalar=False))
            params = load_policy(cfg.model, model, self._x.place, int8=cfg.weights == "int8")
            name = str(Path(cfg.model).resolve()) + (" int8" if cfg.weights == "int8" else "")
            tokenizer = Tokenizer.load(cfg.model)
            return LocalLLM(params, model, tokenizer, self._x.place, name=name, batch_size=cfg.batch_size)
        if cfg.backend == "http" and jax.process_count() > 1:
            return AsksOnFirst(self._paid)
        return self._paid() if cfg.backend == "http" else self.as_llm("feedback", cfg.batch_size)

    def _paid(self) -> CachedLLM:
        return CachedLLM(OpenAILLM(self._x.cfg.feedback.http), self._x.out / "replies.sqlite")

    @property
    def prompts(self) -> Prompts:
        """The prompt files of the feedback model."""
        return load_prompts(self._x.cfg.feedback.family)

    def principles(self) -> list[str]:
        """The judge's principles: those that the game found best, or the ones it would start from."""
        cfg = self._x.cfg.judge
        if cfg.game is None:
            return read_rules(cfg.principles)
        self._x.require("judge")
        versions = Versions(self._x.folder("judge") / "principles")
        return versions.rules(versions.best())

    def judge(self, group: int, mode: str = "") -> RewardFn:
        """The judge as a reward function; `group` answers of a prompt stand together."""
        cfg = self._x.cfg.judge
        return make_judge(
            self.feedback, self.prompts, self.principles(), mode or cfg.mode, votes=cfg.votes,
            temperature=cfg.temperature, group=group,
        )  # fmt: skip

    def _train(self, stage: str) -> TrainConfig:
        return self._x.cfg.rl_of(stage).train if stage in ("rl", "rl_judge") else getattr(self._x.cfg, stage).train

    def _restore(self, stage: str, train: TrainConfig, abstract: Any) -> Any:
        self._x.require(stage)
        checkpoints = Checkpoints(self._x.folder(stage) / "checkpoints", train.keep_last)
        params = checkpoints.restore_params(checkpoints.selected_step(train.select), abstract)
        checkpoints.close()
        return params
