"""Who grades the answers of an evaluation, by a run's config: reward model, grader, judge, the user's functions, and debates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.stages import EVALUATE, GRADER, REWARD
from rlaif_jax.data.audit import answered
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.curate import CurateConfig
from rlaif_jax.feedback.debate import debate
from rlaif_jax.feedback.principles import read_rules
from rlaif_jax.feedback.verdicts import Item
from rlaif_jax.rewards.base import RewardFn, RewardResult, Sample
from rlaif_jax.rewards.judge import first_wins, insisting
from rlaif_jax.runs.data import RunData
from rlaif_jax.runs.folder import Run
from rlaif_jax.runs.llms import RunLlms
from rlaif_jax.runs.models import RunModels
from rlaif_jax.runs.rewards import RunRewards

# Graders whose number is kept beside their verdict, or in its place where the number has no zero point.
_NUMBERS = {"grader": "grader_score", "judge": "judge_p"}
STARTS_AS_JUDGE = "the grader starts from the weights of the feedback model, which is the judge"


def zero_points(cfg: RunConfig) -> dict[str, float]:
    """Score -> the value above which an answer is good, for the scores that have such a value.

    A Bradley-Terry score, a model from a folder and a function have none.
    """
    found = {}
    if cfg.grader is not None and cfg.grader.loss == "binary" and not cfg.grader.folder:
        found["grader"] = 0.0
    if cfg.judge is not None:
        found["judge"] = 0.5
    return found


def own_reward(arm: str) -> str:
    """The score of an arm that maximises rules alone."""
    return f"{arm}_reward"


def independence(cfg: RunConfig, data: RunData) -> dict[str, Any]:
    """What the report says of training data: {"arms": {"judge" ...: rows}, "grader": {"rows", "answers", "prompts", "shared",
    "problem"}}.

    "shared" counts, for what each arm learns from, the grader's training answers and prompts that are in there too. "problem" says
    why the grader is not independent, or why that is not known; "" where it is. "grader" is {} without a grader.
    """
    parts = {name: part for name, part in data.training_of_arms().items() if part}
    found: dict[str, Any] = {"arms": {name: len(part) for name, part in parts.items()}, "grader": {}}
    if cfg.grader is None:
        return found
    if cfg.grader.folder:
        problem = f"it is the model in {cfg.grader.folder}, and this run does not know what that was trained on"
        return found | {"grader": {"problem": problem}}
    rows = data.grader_rows()[0]
    own, prompts = answered(rows), {r.prompt for r in rows}
    shared = {
        name: {"rows": len(part), "answers": len(own & answered(part)), "prompts": len(prompts & {r.prompt for r in part})}
        for name, part in parts.items()
    }  # fmt: skip
    problem = STARTS_AS_JUDGE if cfg.grader.init == "feedback" else ""
    facts = {"rows": len(rows), "answers": len(own), "prompts": len(prompts), "shared": shared, "problem": problem}
    return found | {"grader": facts}


class Graders:
    """Scores answers with everything in the run that can score one; made once per evaluation."""

    def __init__(self, x: Run, models: RunModels, batch_size: int):
        self._x, self._llms = x, RunLlms(x, models, EVALUATE.name)
        self._rewards = RunRewards(x, models, self._llms)
        self.zero_points = zero_points(x.cfg)
        self.rewards: dict[str, RewardFn] = {}
        if x.cfg.reward is not None:
            self.rewards["reward"] = self._rewards.scalar(REWARD.name, batch_size)
        if x.cfg.grader is not None:
            self.rewards["grader"] = self._rewards.scalar(GRADER.name, batch_size)
        if x.cfg.judge is not None:
            self.rewards["judge"] = insisting(self._rewards.judge(1, x.cfg.judge.single_mode))
        self.rewards |= self._rewards.functions()
        by_rule = [name for name, arm in x.cfg.all_arms().items() if not arm.sources]
        self.rewards |= {own_reward(name): self._rewards.arm(name) for name in by_rule}

    def chooser(self, group: int) -> RewardFn:
        """What the best of several answers is chosen by: the reward of the first arm that maximises the reward model, with its
        rules and its penalty; the bare reward model where no arm does."""
        arm = next((name for name, arm in self._x.cfg.all_arms().items() if arm.reward_model), None)
        return self.rewards["reward"] if arm is None else self._rewards.arm(arm, scalar=self.rewards["reward"], group=group)

    def scores(self, samples: Sequence[Sample]) -> list[tuple[dict[str, float | None], tuple[str, ...]]]:
        """For each sample its scores, None without one, and the names of the scores that do not apply to it."""
        results = {name: reward(samples) for name, reward in self.rewards.items()}
        self._require_verdicts(results)
        return [self._scores_of(results, i) for i in range(len(samples))]

    def _scores_of(self, results: Mapping[str, RewardResult], i: int) -> tuple[dict[str, float | None], tuple[str, ...]]:
        found: dict[str, float | None] = {}
        for name, result in results.items():
            value = float(result.values[i]) if result.valid[i] and result.applies[i] else None
            found[name] = value
            if name not in _NUMBERS:
                continue
            if name in self.zero_points:
                found[name] = None if value is None else float(value > self.zero_points[name])
            else:
                del found[name]
            if name != "judge" or self._x.cfg.judge.single_mode != "binary":
                found[_NUMBERS[name]] = value
        return found, tuple(name for name, result in results.items() if not result.applies[i])

    def _require_verdicts(self, results: Mapping[str, RewardResult]) -> None:
        """UserError where the judge failed on more of a batch than RL would accept: an outage is no evaluation."""
        limit, judge = self._x.cfg.rl.max_invalid_rewards, results.get("judge")
        if judge is not None and judge.invalid_share > limit:
            raise UserError(
                f"the judge gave no verdict on {judge.invalid_share:.0%} of a batch of answers ({judge.problem}); the limit is "
                f"{limit:.0%} (rl.max_invalid_rewards). Verdicts that were given are kept; start the same command again"
            )

    def debated(self, samples: Sequence[Sample]) -> list[float | None]:
        """The verdict of a debate on each sample, as curation holds it: 1, 0, or None without one."""
        cfg, items = self._x.cfg, [Item(s.prompt, s.response, s.system) for s in samples]
        principles = read_rules(cfg.judge.principles, self._llms.language) if cfg.judge is not None else []
        found = debate(self._llms.agent, items, (cfg.curate or CurateConfig()).reply_tokens, principles)
        if open_ones := [d.problem for d in found if d.unanswered]:
            raise UserError(f"{len(open_ones)} debates have no answer: {open_ones[0]}. Start the same command again to go on")
        return [None if d.final is None else float(d.final) for d in found]

    @property
    def compares(self) -> bool:
        """Whether the judge can be asked which of two answers is better: an embedded one must have learned to."""
        cfg = self._x.cfg
        return cfg.judge is not None and not (cfg.embedded_feedback and cfg.feedback.source == "labelled")

    def wins(self, first: Sequence[Sample], second: Sequence[Sample]) -> dict[str, list[float | None]]:
        """Who compares -> for each prompt 1 where the first answer wins, 0 where the second does, 0.5 for a tie, None without a
        verdict. The judge is asked in both orders; grader and reward model by their scores."""
        found = {}
        for name in ("judge", "grader", "reward"):
            if name == "judge" and self.compares:
                triples = [(a, a.response, b.response) for a, b in zip(first, second, strict=True)]
                values = first_wins(self._llms.agent, self._llms.principles(), triples)
                found[name] = [None if np.isnan(v) else float(v) for v in values]
            elif name in self.rewards:
                a, b = (self.rewards[name](side) for side in (first, second))
                both = a.valid & b.valid
                values = np.where(a.values == b.values, 0.5, a.values > b.values)
                found[name] = [float(v) if ok else None for v, ok in zip(values, both, strict=True)]
        return found
