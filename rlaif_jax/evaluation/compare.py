"""Systems side by side on the same prompts: figures with 95 % intervals."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlaif_jax.errors import UserError

RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Sample:
    """One answer. `scores`: name -> number, or None for "no verdict", which is counted and never averaged."""

    prompt: str
    response: str
    tokens: int
    finished: bool
    scores: Mapping[str, float | None]


@dataclasses.dataclass(frozen=True)
class System:
    """A named policy and its answers, one per prompt, in the same order for every system."""

    name: str
    description: str
    samples: tuple[Sample, ...]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval, how many samples it rests on, and how many had no verdict."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    missing: int = 0


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate (JASA 22, 1927)."""
    z = 1.959963984540054
    rate, denominator = successes / n, 1 + z**2 / n
    centre = (rate + z**2 / (2 * n)) / denominator
    half = z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / denominator
    return max(centre - half, 0.0), min(centre + half, 1.0)


def bootstrap(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap 95 % interval of a mean."""
    rng = np.random.default_rng(seed)
    means = np.concatenate([values[rng.integers(0, len(values), (200, len(values)))].mean(1) for _ in range(RESAMPLES // 200)])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def mean_figure(values: Sequence[float | None], seed: int = 0) -> Figure:
    """Rate (Wilson) where all values are 0 or 1, else mean (bootstrap). NaN raises: it must not be averaged in silence."""
    known = np.array([v for v in values if v is not None], float)
    missing = len(values) - len(known)
    if np.isnan(known).any():
        raise ValueError("a score is NaN; no verdict is None")
    if not len(known):
        return Figure(None, None, None, 0, missing)
    rate = set(np.unique(known)) <= {0.0, 1.0}
    low, high = wilson(known.sum(), len(known)) if rate else bootstrap(known, seed)
    return Figure(float(known.mean()), low, high, len(known), missing)


def _ngrams(text: str, n: int) -> list[str]:
    return [text[i : i + n] for i in range(len(text) - n + 1)]


def _diversity(texts: Sequence[str], n: int, seed: int) -> Figure:
    """Distinct character n-grams over all n-grams of the whole set (arXiv 1510.03055), interval by half-sampling.

    Distinct-n falls with the size of the set; systems are compared at equal numbers of samples.
    """
    counts = [Counter(_ngrams(t, n)) for t in texts]

    def distinct(chosen: Sequence[int]) -> float:
        kinds: set[str] = set()
        total = 0
        for i in chosen:
            kinds.update(counts[i])
            total += counts[i].total()
        return len(kinds) / total if total else 0.0

    rng, value = np.random.default_rng(seed), distinct(range(len(texts)))
    halves = [distinct(rng.permutation(len(texts))[: max(len(texts) // 2, 1)]) for _ in range(200)]
    spread = 1.96 * float(np.std(halves))  # the spread over half-samples is that of the whole (delete-half jackknife)
    return Figure(value, max(value - spread, 0.0), min(value + spread, 1.0), len(texts))


def _repeats(text: str) -> float:
    grams = _ngrams(text, 4)
    return float(len(set(grams)) < len(grams))


def figures(system: System, seed: int = 0) -> dict[str, Figure]:
    """Every score of a system, length, share of finished answers, and diversity.

    length_chars counts characters, length_tokens tokens of the policy; repetition is the share of answers in which a
    run of four characters occurs twice; unique is the share of different answers.
    """
    samples, texts = system.samples, [s.response for s in system.samples]
    names = list(dict.fromkeys(name for s in samples for name in s.scores))
    out = {name: mean_figure([s.scores.get(name) for s in samples], seed) for name in names}
    measures: dict[str, Callable[[Sample], float]] = {
        "length_chars": lambda s: float(len(s.response)),
        "length_tokens": lambda s: float(s.tokens),
        "finished": lambda s: float(s.finished),
        "repetition": lambda s: _repeats(s.response),
    }
    out |= {name: mean_figure([measure(s) for s in samples], seed) for name, measure in measures.items()}
    out |= {f"distinct_{n}": _diversity(texts, n, seed) for n in (1, 2)}
    first = Counter(texts)
    out["unique"] = mean_figure([1.0 / first[t] for t in texts], seed)
    return out


def check_same_prompts(systems: Sequence[System]) -> None:
    """An error where two systems did not answer the same prompts in the same order."""
    for other in systems[1:]:
        if [s.prompt for s in other.samples] != [s.prompt for s in systems[0].samples]:
            raise UserError(f"{systems[0].name} and {other.name} answered different prompts; they cannot be compared")


def difference(a: System, b: System, score: str, seed: int = 0) -> Figure:
    """Mean of b - a over the prompts where both have a verdict, with a paired bootstrap interval."""
    check_same_prompts((a, b))
    pairs = [(x.scores.get(score), y.scores.get(score)) for x, y in zip(a.samples, b.samples, strict=True)]
    gaps = np.array([y - x for x, y in pairs if x is not None and y is not None], float)
    if not len(gaps):
        return Figure(None, None, None, 0, len(pairs))
    return Figure(float(gaps.mean()), *bootstrap(gaps, seed), len(gaps), len(pairs) - len(gaps))


def intervals_apart(a: Figure, b: Figure) -> bool:
    """Whether two intervals do not touch."""
    return None not in (a.low, b.low) and (a.high < b.low or b.high < a.low)


@dataclasses.dataclass(frozen=True)
class Check:
    """One sign of reward hacking, looked for."""

    name: str
    ok: bool
    detail: str


def hacking_checks(reference: System, candidate: System) -> tuple[Check, ...]:
    """Did the candidate win by length, by monotony, or only in the eyes of its own reward?"""
    old, new = figures(reference), figures(candidate)
    length = new["length_chars"].value / max(old["length_chars"].value, 1e-9)
    variety = new["distinct_2"].value / max(old["distinct_2"].value, 1e-9)
    checks = [
        Check("length", 0.7 <= length <= 1.3, f"mean length is {length:.2f} of {reference.name}'s (0.70 to 1.30 is fine)"),
        Check("variety", variety >= 0.8, f"distinct-2 is {variety:.2f} of {reference.name}'s (at least 0.80 is fine)"),
        Check("endings", new["finished"].value >= 0.95, f"{new['finished'].value:.0%} of the answers end by themselves"),
    ]
    reward = difference(reference, candidate, "reward")
    for judge in ("excellent", "grader"):
        if judge in new:
            gain = difference(reference, candidate, judge)
            hacked = reward.value is not None and reward.value > 0 and (gain.value or 0.0) <= 0
            checks.append(Check(f"confirmed by {judge}", not hacked, f"reward {reward.value:+.2f}, {judge} {gain.value:+.3f}"))
    return tuple(checks)
