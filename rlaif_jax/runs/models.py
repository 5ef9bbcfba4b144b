"""The models of one run, restored from its stages' checkpoints onto its mesh."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax

from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.stages import FEEDBACK, GRADER, REWARD, SFT, TOKENIZER, stage_of
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.errors import UserError
from rlaif_jax.models import transformer
from rlaif_jax.models.lora import LoraConfig, joined
from rlaif_jax.models.matrices import dense
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.models.pretrained import foreign_config, load_policy, resolve
from rlaif_jax.runs.folder import Run
from rlaif_jax.trainers.checkpoint import Checkpoints
from rlaif_jax.trainers.config import TrainConfig
from rlaif_jax.trainers.metrics_log import read_metrics
from rlaif_jax.trainers.trainable import Full, Trainable, abstract_params, scalar_base, trainable_of
from rlaif_jax.trainers.update import shardings_of

BASE = "base"  # the policy before any training


def start_name(init: str) -> str:
    """The name, for `RunModels.policy`, of the weights that `init` (sft, base or feedback) of a config means."""
    return {"sft": SFT.name, "base": BASE, "feedback": FEEDBACK.name}[init]


def check_lengths(cfg: RunConfig, policy: ModelConfig) -> None:
    """UserError that lists every field whose texts are longer than the model is made for (max_position_embeddings)."""
    limits: list[tuple[str, int, int]] = []
    for name in ("sft", "reward", "grader", "dpo"):
        section = getattr(cfg, name)
        if section is not None:
            folder = getattr(section, "folder", "")
            model = foreign_config(folder, cfg.model, scalar=True) if folder else policy
            limits.append((f"{name}.max_length", section.max_length, model.max_positions))
    for name, arm in cfg.all_arms().items():
        rl, field = cfg.rl_of(name), "rl" if arm.rl is None else f"arms.{name}.rl"
        both = rl.max_prompt_tokens + rl.sampling.max_tokens
        limits.append((f"{field}.max_prompt_tokens + {field}.sampling.max_tokens", both, policy.max_positions))
    both = cfg.max_prompt_tokens + cfg.evaluation.sampling.max_tokens
    limits.append(("rl.max_prompt_tokens + evaluation.sampling.max_tokens", both, policy.max_positions))
    wrong = [f"{field} is {length}, the model is made for {most}" for field, length, most in dict.fromkeys(limits) if length > most]
    if wrong:
        raise UserError(f"texts longer than max_position_embeddings of their model: {'; '.join(wrong)}")


class RunModels:
    """Tokenizer, policies and scalar models of a run, by the name of the stage that left them."""

    def __init__(self, run: Run):
        self._run = run

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        if self._run.is_done(TOKENIZER.name):
            self._run.require(TOKENIZER.name)  # its files are as the stage left them
        return Tokenizer.load(self._run.folder(TOKENIZER.name) / "tokenizer")

    @functools.cached_property
    def config(self) -> ModelConfig:
        """The policy's shapes, those of `model.init_from` or with the vocabulary of the tokenizer."""
        return resolve(self._run.cfg.model).with_vocab(self.tokenizer.vocab_size)

    def fresh_policy(self) -> Any:
        """Initial weights (call it under jit). From `seed` itself, not a named stream: run folders of every version agree."""
        return transformer.init(self.config, jax.random.key(self._run.cfg.seed))

    def policy(self, name: str) -> Any:
        """Weights of `BASE` (before any training) or of a stage that leaves a policy, in their shardings.

        Without an SFT stage, its weights are the base's. Every call returns new arrays, which may be donated. Adapters are
        merged into the weights that their stage started from.
        """
        run = self._run
        if name == SFT.name and run.cfg.sft is None:
            name = BASE
        if name == BASE and run.cfg.model.start:
            return load_policy(run.cfg.model.start, self.config, run.place)
        shardings = run.place.tree(transformer.logical_axes(self.config), jax.eval_shape(self.fresh_policy))
        if name == BASE:
            return jax.jit(self.fresh_policy, out_shardings=shardings)()
        if not self.trainable.frozen_base:
            return self.trained(name)
        return self._merged(self.policy(BASE if name == SFT.name else SFT.name), self.trained(name), shardings)

    def scalar(self, name: str) -> Any:
        """Weights of the stage that trains the reward model or the grader, decoder and head, in their shardings."""
        run, stage = self._run, stage_of(self._run.cfg, name)
        if not self.trainable.frozen_base:
            return self.trained(name)
        shardings = shardings_of(abstract_params(Full(), self.config, run.place, scalar=True)[0])
        base = scalar_base(self.policy(start_name(stage.section(run.cfg).init)))
        return self._merged(base, self.trained(name), shardings)

    def adapter(self, name: str) -> tuple[Any, LoraConfig, Any]:
        """(adapter, its config, score head or None) of a stage, over the weights that the run started from.

        A stage that started from another stage's sum of base and adapter gets the sum of both adapters (`lora.joined`).
        """
        lora = self._run.cfg.lora
        if lora is None:
            raise UserError("the run has no lora section: its stages trained all weights")
        stages = self._adapters_of(name)
        if not stages:
            raise UserError(f"{name} has no adapter: it is the weights that the run started from")
        scalar = stage_of(self._run.cfg, name).leaves == "scalar"
        *under, last = [self.trained(stage) for stage in stages]
        parts = [*under, last["model"] if scalar else last]
        scaled = dataclasses.replace(lora, alpha=lora.alpha * len(parts))
        return joined(parts), scaled, last["head"]["score"] if scalar else None

    def _adapters_of(self, name: str) -> list[str]:
        """The stages whose adapters are added to the base in the weights of `name`, in order."""
        if name == BASE or (name == SFT.name and self._run.cfg.sft is None):
            return []
        stage = stage_of(self._run.cfg, name)
        if stage.leaves == "scalar":
            start = start_name(stage.section(self._run.cfg).init)
        else:
            start = BASE if name == SFT.name else SFT.name
        return [*self._adapters_of(start), name]

    @property
    def trainable(self) -> Trainable:
        """What the run's stages train of a model."""
        return trainable_of(self._run.cfg.lora)

    def trained(self, name: str) -> Any:
        """What a stage trained, in its shardings: all weights, or an adapter (and the head of a scalar model)."""
        wanted, _ = abstract_params(self.trainable, self.config, self._run.place, scalar=name in (REWARD.name, GRADER.name))
        return self._restore(name, wanted)

    def _merged(self, base: Any, trained: Any, shardings: Any) -> Any:
        def merge(base: Any, trained: Any) -> Any:
            return dense(self.trainable.full_params(base, trained))

        return jax.jit(merge, donate_argnums=0, out_shardings=shardings)(base, trained)

    def selected(self, name: str) -> dict[str, Any]:
        """The checkpoint that later stages load: its step and held-out metrics."""
        step, folder = self._selected_step(name), self._run.folder(name)
        held_out = {}
        for row in read_metrics(folder / "metrics.jsonl"):
            if row["step"] == step:
                held_out |= {k: v for k, v in row.items() if k.startswith("eval/")}
        return {"step": step, **held_out}

    def _selected_step(self, name: str) -> int:
        checkpoints, train = self._checkpoints(name)
        step = checkpoints.selected_step(train.select)
        checkpoints.close()
        return step

    def _restore(self, name: str, abstract: Any) -> Any:
        self._run.require(name)
        checkpoints, train = self._checkpoints(name)
        noted = self._run.facts(name).get("step")  # a done.json of an older version may lack it
        params = checkpoints.restore_params(checkpoints.selected_step(train.select) if noted is None else noted, abstract)
        checkpoints.close()
        return params

    def _checkpoints(self, name: str) -> tuple[Checkpoints, TrainConfig]:
        train = stage_of(self._run.cfg, name).train(self._run.cfg)
        return Checkpoints(self._run.folder(name) / "checkpoints", train.max_to_keep), train
