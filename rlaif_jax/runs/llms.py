"""The language models of one run that give feedback: which model, which prompts, which principles."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.sections import FeedbackConfig
from rlaif_jax.config.stages import FEEDBACK, PRINCIPLES, SFT
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.cache import CachedLLM, RecordedLLM
from rlaif_jax.feedback.llm import LLM
from rlaif_jax.feedback.local_llm import LocalLLM
from rlaif_jax.feedback.multihost import AsksOnFirst
from rlaif_jax.feedback.openai_llm import OpenAILLM
from rlaif_jax.feedback.principles import Versions, read_rules
from rlaif_jax.feedback.prompts import Prompts, load_prompts
from rlaif_jax.feedback.spending import FILE, Ledger
from rlaif_jax.feedback.verdicts import judge_verdicts
from rlaif_jax.language import Language
from rlaif_jax.models import transformer
from rlaif_jax.models.model_config import ModelConfig, preset
from rlaif_jax.models.pretrained import foreign_config, load_policy, with_numerics
from rlaif_jax.models.quant import keep_layers_in_8_bits
from rlaif_jax.runs.data import RunData
from rlaif_jax.runs.folder import Run
from rlaif_jax.runs.models import BASE, RunModels
from rlaif_jax.sharding.hosts import is_first


def feedback_config(cfg: FeedbackConfig, model: ModelConfig) -> ModelConfig:
    """The model config of a feedback model on the mesh, with its own 8-bit settings in place of the policy's."""
    return dataclasses.replace(model, rollout_quant=cfg.weights, kv_cache=cfg.kv_cache)


def planned_feedback(cfg: RunConfig, policy: ModelConfig) -> ModelConfig | None:
    """The model config of the feedback model on the mesh, None if there is none; for a folder that is not here yet, the shapes
    of `feedback.preset`."""
    feedback = cfg.feedback
    if feedback is None or feedback.backend not in ("embedded", "folder"):
        return None
    if feedback.backend == "folder" and feedback.preset and not Path(feedback.model).exists():
        policy = dataclasses.replace(with_numerics(preset(feedback.preset), cfg.model), param_dtype="bfloat16")
    elif feedback.backend == "folder":
        policy = foreign_config(feedback.model, cfg.model, scalar=False)
    return feedback_config(feedback, policy)


class RunLlms:
    """Feedback model, prompts and principles of a run; the policy of a stage as a language model.

    `stage`: the stage whose ledger counts what the feedback model costs; empty: it is not kept.
    """

    def __init__(self, run: Run, models: RunModels, stage: str = ""):
        self._run, self._models = run, models
        self._stage = stage

    def policy(self, name: str, batch_size: int) -> LocalLLM:
        """The policy of a stage as a language model, for candidates and feedback."""
        run, models = self._run, self._models
        params, model, note = models.policy(name), models.config, ""
        if name == FEEDBACK.name:
            model = feedback_config(run.cfg.feedback, model)
            if model.rollout_quant == "int8":
                params, note = keep_layers_in_8_bits(params, transformer.logical_axes(model), run.place), " int8"
        trained = name != BASE and not (name == SFT.name and run.cfg.sft is None)
        selected = f"{name}@{models.selected(name)['step']}" if trained else BASE
        return LocalLLM(
            params, model, models.tokenizer, run.place, name=f"{run.cfg.name}/{selected}{note}", batch_size=batch_size,
            ledger=self.ledger if name == FEEDBACK.name else None,
        )  # fmt: skip

    @functools.cached_property
    def ledger(self) -> Ledger:
        """Counts the requests to the feedback model, in the folder of the stage."""
        kept = self._stage and is_first()
        return Ledger(self._run.folder(self._stage) / FILE if kept else None, sorted(self._run.out.glob(f"*/{FILE}")))

    @functools.cached_property
    def feedback(self) -> LLM:
        """The model that `feedback.backend` names; replies of a chat API are kept in the run's cache."""
        run, cfg = self._run, self._run.cfg.feedback
        if cfg is None:
            raise UserError("the config has no feedback section; see configs/greetings_demo.py for one")
        if cfg.backend == "recorded":
            return RecordedLLM(cfg.transcript, cfg.model)
        if cfg.backend == "folder":
            model = feedback_config(cfg, foreign_config(cfg.model, run.cfg.model, scalar=False))
            tokenizer = Tokenizer.load(cfg.model, model.vocab_size)
            params = load_policy(cfg.model, model, run.place, int8=cfg.weights == "int8")
            name = str(Path(cfg.model).resolve()) + (" int8" if cfg.weights == "int8" else "")
            return LocalLLM(params, model, tokenizer, run.place, name=name, batch_size=cfg.batch_size, ledger=self.ledger)
        if cfg.backend == "embedded":
            return self.policy(FEEDBACK.name, cfg.batch_size)
        return AsksOnFirst(self._asked) if jax.process_count() > 1 else self._asked()

    def _asked(self) -> LLM:
        """A model that runs elsewhere: a chat API, or the user's own. Its replies are stored."""
        cfg = self._run.cfg.feedback
        inner = OpenAILLM(cfg.http, self.ledger) if cfg.backend == "http" else self._run.resolve(cfg.backend)()
        return CachedLLM(inner, cfg.http.cache or self._run.out / "replies.sqlite", self.ledger)

    @property
    def prompts(self) -> Prompts:
        """The prompt files of the feedback model."""
        return load_prompts(self._run.cfg.feedback.family(self.language))

    @functools.cached_property
    def language(self) -> Language:
        """The task's language."""
        return RunData(self._run).language

    @property
    def agent(self) -> Agent:
        """The feedback model with its prompts."""
        return Agent(self.feedback, self.prompts, self._run.cfg.feedback.defence)

    def judge(self, principles: Sequence[str], answers: Sequence[tuple[str, str]]) -> np.ndarray:
        """P(Good) of every (request, answer) by these principles, in the judge's mode: (B,) float32, NaN for an invalid verdict."""
        cfg = self._run.cfg.judge
        return judge_verdicts(self.agent, cfg.single_mode, cfg.votes, cfg.temperature)(principles, answers).p_good

    def principles(self) -> list[str]:
        """The judge's principles: those that the game found best, or the ones it would start from."""
        cfg = self._run.cfg.judge
        if cfg.game is None:
            return read_rules(cfg.principles, self.language)
        self._run.require(PRINCIPLES.name)
        versions = Versions(self._run.folder(PRINCIPLES.name) / "principles")
        return versions.rules(versions.best())
