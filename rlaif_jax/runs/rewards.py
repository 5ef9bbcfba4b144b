"""The rewards of one run by config: reward model, grader, judge, the user's functions, and an arm's weighted sum of them."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from rlaif_jax.config.stages import GRADER, REWARD
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.errors import UserError, printable
from rlaif_jax.models.pretrained import foreign_config, load_scalar
from rlaif_jax.rewards.base import RewardFn, with_unfinished_penalty
from rlaif_jax.rewards.function import FunctionConfig, function_reward
from rlaif_jax.rewards.judge import make_judge
from rlaif_jax.rewards.reward_model import make_reward_model
from rlaif_jax.rewards.rules import with_rules
from rlaif_jax.runs.folder import Run
from rlaif_jax.runs.llms import RunLlms
from rlaif_jax.runs.models import RunModels
from rlaif_jax.trainers.config import RewardConfig
from rlaif_jax.trainers.trainable import scalar_base

_LOG = logging.getLogger(__name__)


class RunRewards:
    """Every reward that a run's config names, as a function of samples."""

    def __init__(self, run: Run, models: RunModels, llms: RunLlms):
        self._run, self._models, self._llms = run, models, llms

    def scalar(self, name: str, batch_size: int, base: Any = None) -> RewardFn:
        """The scores of the reward model or the grader, `batch_size` rows at a time.

        `base`: the SFT policy's weights, which the caller keeps. A reward model whose adapter was trained on them reuses them, so
        that they are loaded once.
        """
        run, models = self._run, self._models
        cfg = run.cfg.grader if name == GRADER.name else run.cfg.reward
        if cfg is None:
            raise UserError(f"the run {run.cfg.name!r} has no {name}: its config section is None")
        room = self._room(cfg)
        if cfg.folder:
            model = foreign_config(cfg.folder, run.cfg.model, scalar=True)
            params, tokenizer = load_scalar(cfg.folder, model, run.place), Tokenizer.load(cfg.folder, model.vocab_size)
            room = min(room, model.max_positions)
            return make_reward_model(params, model, tokenizer, room, run.place, batch_size, whole_chat=True)
        if base is not None and run.cfg.shares_base(cfg):
            params = models.trainable.full_params(scalar_base(base), models.trained(name))
        else:
            params = models.scalar(name)
        return make_reward_model(params, models.config, models.tokenizer, room, run.place, batch_size)

    def _room(self, cfg: RewardConfig) -> int:
        """Tokens of the longest row that is scored: at least the longest prompt and answer that the run samples."""
        run = self._run.cfg
        answers = [run.evaluation.sampling.max_tokens, *(run.rl_of(name).sampling.max_tokens for name in run.all_arms())]
        return max(cfg.max_length, run.max_prompt_tokens + max(answers))

    def judge(self, group: int, mode: str = "") -> RewardFn:
        """The judge's verdicts; `group` answers of a prompt are next to one another (for the mode pairwise)."""
        cfg = self._run.cfg.judge
        if cfg is None:
            raise UserError(f"the run {self._run.cfg.name!r} has no judge: its config section is None")
        return make_judge(
            self._llms.agent, self._llms.principles(), mode or cfg.mode, votes=cfg.votes,
            temperature=cfg.temperature, group=group,
        )  # fmt: skip

    def functions(self) -> dict[str, RewardFn]:
        """The user's functions of all arms by name. Where the run may not import code, only those that are given as functions."""
        found = {n: f for arm in self._run.cfg.all_arms().values() for n, f in arm.functions.items()}
        usable = {n: f for n, f in found.items() if callable(f.function) or self._run.imports_functions}
        if left_out := sorted(found.keys() - usable.keys()):
            names = ", ".join(left_out)
            self._report(f"note: this command imports no code, so these give no score: {names}. `rlaif run` scores with them")
        return {name: self._function(name, cfg) for name, cfg in usable.items()}

    def _function(self, name: str, cfg: FunctionConfig) -> RewardFn:
        resolved = dataclasses.replace(cfg, function=self._run.resolve(cfg.function))
        return function_reward(resolved, name, self._report)

    def arm(self, name: str, base: Any = None, *, scalar: RewardFn | None = None, group: int = 0) -> RewardFn:
        """The reward that an arm maximises: the weighted sum of its parts, less the penalty for answers that do not end.

        `base`: see `scalar`. `scalar`: the reward model, where the caller has it already. `group`: answers to each prompt; 0: as
        many as in RL.
        """
        arm, rl = self._run.cfg.all_arms()[name], self._run.cfg.rl_of(name)
        parts: dict[str, tuple[RewardFn, float]] = {}
        if arm.reward_model:
            scalar = scalar or self.scalar(REWARD.name, rl.train.batch_size * rl.group_size, base)
            parts["reward_model"] = scalar, arm.reward_model
        if arm.judge:
            parts["judge"] = self.judge(group or rl.group_size), arm.judge
        for function, cfg in arm.functions.items():
            parts[function] = self._function(function, cfg), cfg.weight
        return with_unfinished_penalty(with_rules(parts, arm.rules, self._run.cfg.language), rl.shaping.missing_eos_penalty)

    def _report(self, text: str) -> None:
        if self._run.console.quiet:  # a script that asked for no progress still needs the problem
            _LOG.warning(text)
        self._run.console.print(printable(text), style="yellow", markup=False, highlight=False)
