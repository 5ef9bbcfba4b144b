"""Rule-based rewards, and sums of several rewards. Rules read only the texts, in their language, never the gold scorer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlaif_jax.errors import UserError
from rlaif_jax.feedback.llm import worst
from rlaif_jax.language import Language, get_language, language_of
from rlaif_jax.ranges import Count, Weight, check_fields
from rlaif_jax.rewards.base import RewardFn, RewardResult, Sample


@dataclasses.dataclass(frozen=True)
class RuleConfig:
    """Rule-based rewards, added to an arm's other rewards. Each is in [0, 1] before its weight is applied.

    Attributes:
      constraint_weight: weight of the constraint rule: 1 if the answer keeps the constraints in the request (such as a length),
        else 0. Does not apply to a request without constraints; 0 = off.
      repetition_weight: weight of the repetition rule: 1 minus the share of repeated 4-grams of characters (Chinese) or words
        (English); 0 = off.
      length_weight: weight of the length rule: 1 between length_min and length_max, falling to 0 at length_min / 2 and
        2 * length_max; 0 = off.
      length_min, length_max: range for the length rule, in characters (Chinese) or words (English).
      veto_constraint: subtract veto_penalty from the sum if the answer breaks a constraint in the request.
      veto_repetition: subtract veto_penalty from the sum if more than a fifth of the answer's 4-grams are repeated.
      veto_penalty: amount that each veto subtracts.
      normalise: "none", or "batch": normalise each reward to zero mean and unit standard deviation over the batch before summing.
        The held-out reward is then 0 on average, so no checkpoint can be chosen by it, and a step must have one batch of rewards.
    """

    constraint_weight: Weight = 0.0
    repetition_weight: Weight = 0.0
    length_weight: Weight = 0.0
    length_min: Count = 10
    length_max: Count = 60
    veto_constraint: bool = False
    veto_repetition: bool = False
    veto_penalty: Weight = 1.0
    normalise: str = "none"

    def __post_init__(self):
        check_fields(self)
        if self.normalise not in ("none", "batch"):
            raise UserError(f"rules.normalise is {self.normalise!r}; expected none or batch")
        if self.length_min > self.length_max:
            raise UserError(f"rules.length_min {self.length_min} is more than length_max {self.length_max}")


def keeps_constraints(request: str, response: str, language: str = "auto") -> float | None:
    """1.0 if the answer keeps the constraints that the rules find in the request (length, number of items, first word, words to
    avoid), else 0.0; None if they find none. `language`: see `with_rules`."""
    kept = get_language(language, request).keeps_constraints(request, response)
    return None if kept is None else float(kept)


def distinct_share(response: str, n: int = 4, language: Language | None = None) -> float:
    """1 minus the share of repeated n-grams, of characters or words depending on the language."""
    grams = (language or language_of(response)).ngrams(response, n, punctuation=False)
    return len(set(grams)) / len(grams) if grams else 1.0


def length_band(response: str, low: int, high: int, language: Language | None = None) -> float:
    """1 if the length is in [low, high] characters or words, falling linearly to 0 at low / 2 and 2 * high."""
    length = (language or language_of(response)).count(response)
    if length < low:
        return max(0.0, (length - low / 2) / (low / 2))
    return max(0.0, 1.0 - max(0, length - high) / high)


def _per_answer(score: Callable[[Sample], float | None]) -> RewardFn:
    """A reward from a score per sample; None means that it does not apply."""

    def reward(samples: Sequence[Sample]) -> RewardResult:
        scores = [score(e) for e in samples]
        applicable = np.array([s is not None for s in scores], bool)
        values = np.array([s or 0.0 for s in scores], np.float32)
        return RewardResult(values, np.ones(len(samples), bool), applicable=None if applicable.all() else applicable)

    return reward


def with_rules(parts: Mapping[str, tuple[RewardFn, float]], cfg: RuleConfig, language: str = "auto") -> RewardFn:
    """The weighted sum of the parts (name -> reward and weight) and the rules. Each part is logged under its name.

    `language`: language of the task, "zh" or "en"; "auto": detected from the script of each request.
    """

    def tongue(sample: Sample) -> Language:
        return get_language(language, sample.prompt)

    parts = dict(parts)
    kept = _per_answer(lambda e: keeps_constraints(e.prompt, e.response, language))
    fresh = _per_answer(lambda e: distinct_share(e.response, language=tongue(e)))
    band = _per_answer(lambda e: length_band(e.response, cfg.length_min, cfg.length_max, tongue(e)))
    for name, rule, weight in (
        ("constraint", kept, cfg.constraint_weight), ("repetition", fresh, cfg.repetition_weight),
        ("length", band, cfg.length_weight),
    ):  # fmt: skip
        if weight:
            parts[name] = (rule, weight)
    vetoes = {}
    if cfg.veto_constraint:
        vetoes["constraint"] = kept
    if cfg.veto_repetition:
        vetoes["repetition"] = _per_answer(lambda e: float(distinct_share(e.response, language=tongue(e)) >= 0.8))
    return combine(parts, vetoes, cfg.veto_penalty, cfg.normalise)


def combine(
    parts: Mapping[str, tuple[RewardFn, float]], vetoes: Mapping[str, RewardFn], penalty: float, normalise: str
) -> RewardFn:
    """The weighted sum of the parts, minus `penalty` for every veto whose value is below 0.5.

    A part that does not apply to a row adds 0 and does not make the row invalid. A row is valid if every part and veto that
    applies to it is valid, so an invalid part never counts as 0. If no part or veto applies to a row, neither does the sum.
    """

    def reward(samples: Sequence[Sample]) -> RewardResult:
        total = np.zeros(len(samples), np.float32)
        valid, applicable = np.ones(len(samples), bool), np.zeros(len(samples), bool)
        components: dict[str, np.ndarray] = {}
        problems = []
        for name, (fn, weight) in parts.items():
            result = fn(samples)
            problems.append(result.problem)
            applies = result.applies
            valid, applicable = valid & (result.valid | ~applies), applicable | applies
            values = np.where(result.valid & applies, result.values, 0.0)
            components[name] = np.where(applies, values, np.nan)
            total += weight * (_standardised(values, result.valid & applies) if normalise == "batch" else values)
        for name, fn in vetoes.items():
            result = fn(samples)
            applies = result.applies
            valid, applicable = valid & (result.valid | ~applies), applicable | applies
            fires = (applies & (result.values < 0.5)).astype(np.float32)
            components[f"veto_{name}"] = np.where(applies, fires, np.nan)
            total -= penalty * fires
        return RewardResult(total, valid, components, None if applicable.all() else applicable, worst(problems))

    return reward


def _standardised(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Values (B,) normalised by mean and standard deviation of the `known` rows; 0 in all other rows."""
    if not known.any():
        return np.zeros_like(values)
    mean, std = values[known].mean(), values[known].std()
    return np.where(known, (values - mean) / (std + 1e-6), 0.0).astype(np.float32)
