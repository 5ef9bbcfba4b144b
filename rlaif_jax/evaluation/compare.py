"""Compares systems on the same prompts: figures of each system, and paired differences of two."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rlaif_jax.errors import UserError
from rlaif_jax.evaluation import diversity
from rlaif_jax.evaluation.scores import (
    RESAMPLES,
    Figure,
    bootstrap_means,
    is_binary,
    mean_figure,
    rate_figure,
)
from rlaif_jax.evaluation.text import LABELS
from rlaif_jax.language import Language, language_of

# Metrics per sample that need no score, metrics of the set of samples, and the metrics that are shares of samples.
_LENGTHS = {"characters": "length_chars", "words": "length_words"}  # by the language's unit of length
PLAIN = (*_LENGTHS.values(), "length_tokens", "finished")
WHOLE_SET = ("distinct_1", "distinct_2", "self_repetition", "unique_responses")
_LARGEST = float(np.finfo(np.float32).max)
RATES = ("finished", "self_repetition", "unique_responses")


@dataclass(frozen=True)
class GradedSample:
    """One answer.

    Attributes:
      tokens: length of the response in tokens.
      finished: whether the response ended before the token limit.
      scores: name -> number, or None without a score. A number that is not finite, or outside the range of float32, becomes None.
      not_applicable: the scores without a number that do not apply to this prompt; the others without a number are invalid.
    """

    prompt: str
    response: str
    tokens: int
    finished: bool
    scores: Mapping[str, float | None] = field(default_factory=dict)
    not_applicable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if taken := [name for name in self.scores if name in PLAIN + WHOLE_SET]:
            raise UserError(f"score {taken[0]!r} has the name of a built-in metric; choose another name")
        object.__setattr__(self, "scores", {name: _usable(v) for name, v in self.scores.items()})
        object.__setattr__(self, "not_applicable", tuple(self.not_applicable))


def _usable(value: float | None) -> float | None:
    """The number, or None: sums and spreads of numbers beyond float32 would overflow."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) and abs(number) <= _LARGEST else None


@dataclass(frozen=True)
class System:
    """The answers of one policy to the evaluation prompts, one sample per prompt.

    `language` determines whether lengths are in characters or words; None = the language of the prompts.
    """

    name: str
    description: str
    samples: tuple[GradedSample, ...]
    language: Language | None = None

    def __post_init__(self) -> None:
        if self.language is None:
            object.__setattr__(self, "language", language_of("".join(s.prompt for s in self.samples)))

    @property
    def length_metric(self) -> str:
        """Name of the length in the language's unit: length_chars or length_words."""
        return _LENGTHS[self.language.unit]

    @property
    def plain(self) -> tuple[str, ...]:
        """Names of the per-sample metrics that need no score."""
        return (self.length_metric, "length_tokens", "finished")

    @property
    def responses(self) -> list[str]:
        """The answers' texts, in order."""
        return [s.response for s in self.samples]

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of all scores of the samples, in order of appearance."""
        return tuple(dict.fromkeys(name for s in self.samples for name in s.scores))

    def values(self, metric: str) -> list[float | None]:
        """The values per sample of a score, or of a metric of `plain`. UserError on other names."""
        if metric == self.length_metric:
            return [float(self.language.length(s.response)) for s in self.samples]
        if metric == "length_tokens":
            return [float(s.tokens) for s in self.samples]
        if metric == "finished":
            return [float(s.finished) for s in self.samples]
        if metric not in self.score_names:
            known = ", ".join(self.score_names + self.plain)
            raise UserError(f"system {self.name!r} has no score {metric!r}; it has {known}")
        return [s.scores.get(metric) for s in self.samples]


    def applicable(self, score: str) -> int:
        """The number of samples to which a score applies."""
        return sum(score not in s.not_applicable for s in self.samples)


def check_systems(systems: Sequence[System]) -> None:
    """UserError unless the systems have different names and one language, and answer the same prompts in the same order."""
    if not systems:
        raise UserError("nothing to compare: no system given")
    names = [s.name for s in systems]
    if len(set(names)) < len(names):
        raise UserError(f"two systems have the same name: {', '.join(names)}")
    for system in systems:
        if not system.samples:
            raise UserError(f"system {system.name!r} has no samples")
        if system.language != systems[0].language:
            raise UserError(f"system {system.name!r} is in {system.language.name}, {names[0]!r} in {systems[0].language.name}")
    check_same_prompts(systems)


def check_same_prompts(systems: Sequence[System]) -> None:
    """UserError with the first difference unless all systems answer the same prompts in the same order."""
    for a, b in itertools.pairwise(systems):
        start = f"systems {a.name!r} and {b.name!r} must answer the same prompts in the same order"
        if len(a.samples) != len(b.samples):
            raise UserError(f"{start}: {len(a.samples)} and {len(b.samples)} samples")
        for i, (x, y) in enumerate(zip(a.samples, b.samples, strict=True)):
            if x.prompt != y.prompt:
                raise UserError(f"{start}; prompt {i} is {x.prompt[:40]!r} and {y.prompt[:40]!r}")


def figures(system: System, seed: int = 0) -> dict[str, Figure]:
    """Every metric of one system, with 95 % intervals.

    `missing` counts the answers to which a score applies, but which have none. Rates (Wilson): scores whose values are all 0 or 1,
    finished, and self_repetition (share of responses with a repeated 4-gram of characters or words). Means (percentile bootstrap,
    2,000 resamples, seeded): other scores and all lengths. Ratios over the set of samples (jackknife): distinct_1, distinct_2 and
    unique_responses. These ratios depend on the number of samples; compare
    only systems with the same number (`check_systems` ensures it). Samples are assumed to be independent.
    """
    found = {}
    for name in system.score_names + system.plain:
        values = system.values(name)
        binary = name == "finished" or (name not in PLAIN and is_binary(values))
        figure = rate_figure(values) if binary else mean_figure(values, seed)
        missing = figure.missing - len(system.samples) + system.applicable(name)
        found[name] = Figure(figure.value, figure.low, figure.high, figure.n, missing)
    texts, language = system.responses, system.language
    found["distinct_1"] = diversity.distinct_figure(texts, 1, language)
    found["distinct_2"] = diversity.distinct_figure(texts, 2, language)
    found["self_repetition"] = diversity.self_repetition_figure(texts, language=language)
    found["unique_responses"] = diversity.unique_figure(texts)
    return found


def paired(a: System, b: System, score: str) -> tuple[np.ndarray, np.ndarray, int]:
    """The values [n] of both systems on the prompts where both have a score, and the number of other prompts."""
    check_same_prompts((a, b))
    both = [(x, y) for x, y in zip(a.values(score), b.values(score), strict=True) if x is not None and y is not None]
    array = np.array(both, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1], len(a.samples) - len(both)


def difference(a: System, b: System, score: str, seed: int = 0, resamples: int = RESAMPLES) -> Figure:
    """Mean of b - a over prompts where both have a score, with a paired percentile-bootstrap 95 % interval.

    Prompts are resampled with both of their answers, so that the difficulty of prompts cancels. There is no interval if all
    differences are equal, or if there is only one. UserError if the systems answer different prompts or lack the score.
    """
    x, y, missing = paired(a, b, score)
    change = y - x
    if change.size == 0:
        return Figure(None, None, None, 0, missing)
    if np.all(change == change[0]):
        return Figure(float(change[0]), None, None, change.size, missing)
    low, high = np.percentile(bootstrap_means(change, seed, resamples), [2.5, 97.5])
    return Figure(float(change.mean()), float(low), float(high), change.size, missing)


def win_rate(a: System, b: System, score: str) -> Figure:
    """Share of prompts on which b has the higher score, ties one half, with a Wilson 95 % interval.

    It needs no zero point, so it says more than a share of good answers for a score that has none.
    """
    x, y, missing = paired(a, b, score)
    found = rate_figure(np.where(x == y, 0.5, y > x).tolist())
    return Figure(found.value, found.low, found.high, found.n, missing)


def intervals_apart(a: Figure, b: Figure) -> bool:
    """Whether the two 95 % intervals do not overlap; False if one of them is unknown.

    This is stricter than a test of the difference: with slightly overlapping intervals it may be significant. Use `difference`.
    """
    if not (a.has_interval and b.has_interval):
        return False
    return a.high < b.low or b.high < a.low


def is_rate(systems: Sequence[System], metric: str) -> bool:
    """Whether a metric is a share of samples in every system; shares are shown in percent."""
    if metric in PLAIN + WHOLE_SET:
        return metric in RATES
    return is_binary([v for s in systems if metric in s.score_names for v in s.values(metric)])


def metric_names(systems: Sequence[System]) -> tuple[str, ...]:
    """All metrics of a comparison: scores (known ones first), then lengths, then diversity."""
    scores = dict.fromkeys(name for s in systems for name in s.score_names)
    known = [name for name in LABELS if name in scores]
    return (*known, *(name for name in scores if name not in known), *systems[0].plain, *WHOLE_SET)
