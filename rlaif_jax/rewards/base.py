"""The types of rewards. A reward is a function of texts, so policy and reward model may have different tokenizers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlaif_jax.errors import UserError
from rlaif_jax.feedback.llm import Failure, worst


@dataclasses.dataclass(frozen=True)
class Sample:
    """A prompt and a response. `finished` is False if the token limit cut the response off.

    `meta`: the other columns of the prompt's data row, such as a ground truth for a verifier.
    """

    prompt: str
    response: str
    finished: bool = True
    system: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RewardResult:
    """The rewards of B samples.

    Attributes:
      values: (B,) float32.
      valid: (B,) bool, False where no reward could be computed (a judge that failed, an answer that is too long). Such a row
        is masked and counted as invalid.
      components: parts of the reward for the log, each (B,) float32; NaN where a part does not apply. Meaningless in invalid
        rows.
      applicable: (B,) bool, False where the reward does not apply (a rule about a constraint that the request does not
        state). Such a row is masked too, but it is not invalid. None: applies to all rows.
      problem: why a row is invalid; of several causes the worst.
    """

    values: np.ndarray
    valid: np.ndarray
    components: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    applicable: np.ndarray | None = None
    problem: Failure | None = None

    @property
    def applies(self) -> np.ndarray:
        """`applicable` as an array (B,) bool."""
        return np.ones(len(self.values), bool) if self.applicable is None else self.applicable

    @property
    def invalid_share(self) -> float:
        """Share of invalid rows among those to which the reward applies; 0 if there are none."""
        applies = self.applies
        return float((applies & ~self.valid).sum() / max(applies.sum(), 1))

    def take(self, rows: np.ndarray) -> RewardResult:
        """The result for a selection of rows, by index or mask."""
        applicable = None if self.applicable is None else self.applicable[rows]
        components = {k: v[rows] for k, v in self.components.items()}
        return RewardResult(self.values[rows], self.valid[rows], components, applicable, self.problem)


RewardFn = Callable[[Sequence[Sample]], RewardResult]


def joined(parts: Sequence[RewardResult]) -> RewardResult:
    """The results of several parts of a batch, joined. All parts must have the same components."""
    everywhere = all(p.applicable is None for p in parts)
    return RewardResult(
        np.concatenate([p.values for p in parts]), np.concatenate([p.valid for p in parts]),
        {name: np.concatenate([p.components[name] for p in parts]) for name in parts[0].components},
        None if everywhere else np.concatenate([p.applies for p in parts]), worst([p.problem for p in parts]),
    )  # fmt: skip


def checked(result: RewardResult, max_invalid: float) -> RewardResult:
    """Marks values that are not finite as invalid. UserError if the share of invalid rows exceeds `max_invalid`.

    In the new result, `valid` is False where the reward is invalid or does not apply. Such rows are masked, since a zero would
    count as a reward.
    """
    result = dataclasses.replace(result, valid=result.valid & (np.isfinite(result.values) | ~result.applies))
    if result.invalid_share > max_invalid:
        share = f"{result.invalid_share:.0%} of the rewards of a batch are invalid"
        cause = f". The cause: {result.problem}" if result.problem else ""
        raise UserError(f"{share}; the limit is {max_invalid:.0%} (rl.max_invalid_rewards){cause}")
    usable = result.valid & result.applies
    return dataclasses.replace(result, values=np.where(usable, result.values, 0.0).astype(np.float32), valid=usable)


def with_unfinished_penalty(reward: RewardFn, penalty: float) -> RewardFn:
    """The reward minus `penalty` for responses that are not finished."""

    def penalised(samples: Sequence[Sample]) -> RewardResult:
        result = reward(samples)
        unfinished = np.array([not e.finished for e in samples], np.float32)
        parts = result.components | {"unfinished": -penalty * unfinished}
        return dataclasses.replace(result, values=result.values - penalty * unfinished, components=parts)

    return penalised
