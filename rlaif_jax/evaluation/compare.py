"""Systems side by side on the same prompts: figures of each, paired differences between two."""

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
from rlaif_jax.language import Language, language_of

# Per-sample metrics that need no score, those of a whole set, and which of them are shares of samples.
_LENGTHS = {"characters": "length_chars", "words": "length_words"}  # by the language's unit
PLAIN = (*_LENGTHS.values(), "length_tokens", "finished")
WHOLE_SET = ("distinct_1", "distinct_2", "self_repetition", "unique_responses")
RATES = ("finished", "self_repetition", "unique_responses")


@dataclass(frozen=True)
class GradedSample:
    """One answer. scores: name -> number, or None for "no verdict"; NaN and infinity raise ValueError.

    Attributes:
      tokens: length of the response in tokens.
      finished: whether the response ended by itself, before the token limit.
    """

    prompt: str
    response: str
    tokens: int
    finished: bool
    scores: Mapping[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        clean = {name: None if v is None else float(v) for name, v in self.scores.items()}
        for name, v in clean.items():
            if v is not None and not math.isfinite(v):
                raise ValueError(f"score {name!r} is {v} for prompt {self.prompt[:40]!r}; None means no verdict")
            if name in PLAIN + WHOLE_SET:
                raise UserError(f"score {name!r} has the name of a built-in metric; call it something else")
        object.__setattr__(self, "scores", clean)


@dataclass(frozen=True)
class System:
    """The answers of one policy to the evaluation prompts, one sample per prompt.

    `language` says whether texts are counted in characters or words; None: the language of the prompts.
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
        """Names of the scores that any sample has, in order of appearance."""
        return tuple(dict.fromkeys(name for s in self.samples for name in s.scores))

    def values(self, metric: str) -> list[float | None]:
        """The per-sample values of a score or of one of `plain`. Raises UserError on others."""
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


def check_systems(systems: Sequence[System]) -> None:
    """Raises UserError unless names differ and all systems answer the same prompts, in the same order, at least one."""
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
    """Raises UserError, naming the first difference, unless all systems answer the same prompts in the same order."""
    for a, b in itertools.pairwise(systems):
        start = f"systems {a.name!r} and {b.name!r} must answer the same prompts in the same order"
        if len(a.samples) != len(b.samples):
            raise UserError(f"{start}: {len(a.samples)} against {len(b.samples)} samples")
        for i, (x, y) in enumerate(zip(a.samples, b.samples, strict=True)):
            if x.prompt != y.prompt:
                raise UserError(f"{start}; prompt {i} is {x.prompt[:40]!r} against {y.prompt[:40]!r}")


def figures(system: System, seed: int = 0) -> dict[str, Figure]:
    """Every metric of one system, with 95 % intervals.

    Scores whose verdicts are all 0 or 1 are rates (Wilson); other scores, length_chars or length_words and
    length_tokens are means (percentile bootstrap, 2,000 resamples, seeded). finished and self_repetition (share of responses with a
    repeated 4-gram of characters or words) are rates. distinct_1, distinct_2 and unique_responses are ratios of the whole set, with
    jackknife intervals; they depend on the number of samples, so compare them only between systems with the same
    number (`check_systems` makes sure of it). Samples are taken as independent.
    """
    found = {}
    for name in system.score_names + system.plain:
        values = system.values(name)
        binary = name == "finished" or (name not in PLAIN and is_binary(values))
        found[name] = rate_figure(values) if binary else mean_figure(values, seed)
    texts, language = system.responses, system.language
    found["distinct_1"] = diversity.distinct_figure(texts, 1, language)
    found["distinct_2"] = diversity.distinct_figure(texts, 2, language)
    found["self_repetition"] = diversity.self_repetition_figure(texts, language=language)
    found["unique_responses"] = diversity.unique_figure(texts)
    return found


def paired(a: System, b: System, score: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Values of both systems [n] on the prompts where both have a verdict, and how many prompts lack one."""
    check_same_prompts((a, b))
    both = [(x, y) for x, y in zip(a.values(score), b.values(score), strict=True) if x is not None and y is not None]
    array = np.array(both, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1], len(a.samples) - len(both)


def difference(a: System, b: System, score: str, seed: int = 0, resamples: int = RESAMPLES) -> Figure:
    """Mean of b - a over prompts where both have a verdict, with a paired percentile-bootstrap 95 % interval.

    Prompts are resampled, each with both of its answers, so that easy and hard prompts cancel. Without any spread in
    the differences (or with one pair) there is nothing to resample and no interval. Raises UserError where the systems
    answer different prompts or lack the score.
    """
    x, y, missing = paired(a, b, score)
    change = y - x
    if change.size == 0:
        return Figure(None, None, None, 0, missing)
    if np.all(change == change[0]):
        return Figure(float(change[0]), None, None, change.size, missing)
    low, high = np.percentile(bootstrap_means(change, seed, resamples), [2.5, 97.5])
    return Figure(float(change.mean()), float(low), float(high), change.size, missing)


def intervals_apart(a: Figure, b: Figure) -> bool:
    """Whether the two 95 % intervals have no point in common; False where one of them is unknown.

    Stricter than a test of the difference: intervals that overlap a little may still differ. Use `difference` for that.
    """
    if not (a.has_interval and b.has_interval):
        return False
    return a.high < b.low or b.high < a.low


def is_rate(systems: Sequence[System], metric: str) -> bool:
    """Whether a metric is a share of samples in every system (and is shown in percent)."""
    if metric in PLAIN + WHOLE_SET:
        return metric in RATES
    return is_binary([v for s in systems if metric in s.score_names for v in s.values(metric)])


def metric_names(systems: Sequence[System]) -> tuple[str, ...]:
    """All metrics of a comparison: scores in order of appearance, then lengths and diversity."""
    scores = dict.fromkeys(name for s in systems for name in s.score_names)
    return (*scores, *systems[0].plain, *WHOLE_SET)
