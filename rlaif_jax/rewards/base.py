"""What every reward is: a function of texts, so that policy and reward model may have different tokenizers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from rlaif_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sample:
    """A prompt and a response; `finished` is False where the response ran into the token limit."""

    prompt: str
    response: str
    finished: bool = True
    system: str = ""


@dataclasses.dataclass(frozen=True)
class RewardResult:
    """values (B,) float32; valid (B,) bool, False where there is no verdict; components: parts of it, for the log."""

    values: np.ndarray
    valid: np.ndarray
    components: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


RewardFn = Callable[[Sequence[Sample]], RewardResult]


def joined(parts: Sequence[RewardResult]) -> RewardResult:
    """The results of several parts of a batch as one."""
    return RewardResult(
        np.concatenate([p.values for p in parts]), np.concatenate([p.valid for p in parts]),
        {name: np.concatenate([p.components[name] for p in parts]) for name in parts[0].components},
    )  # fmt: skip


def checked(result: RewardResult, max_lost: float) -> RewardResult:
    """The result with values that are not finite turned into "no verdict"; too many lost verdicts stop the run.

    No verdict is a mask, never a zero: a zero would be a reward.
    """
    valid = result.valid & np.isfinite(result.values)
    lost = 1.0 - valid.mean()
    if lost > max_lost:
        raise UserError(f"{lost:.0%} of the rewards of a batch have no verdict; the limit is {max_lost:.0%}")
    return dataclasses.replace(result, values=np.where(valid, result.values, 0.0).astype(np.float32), valid=valid)


def with_unfinished_penalty(reward: RewardFn, penalty: float) -> RewardFn:
    """The reward less `penalty` where the response did not end."""

    def penalised(samples: Sequence[Sample]) -> RewardResult:
        result = reward(samples)
        unfinished = np.array([not e.finished for e in samples], np.float32)
        parts = result.components | {"model": result.values, "unfinished": -penalty * unfinished}
        return dataclasses.replace(result, values=result.values - penalty * unfinished, components=parts)

    return penalised
