"""Figures with intervals: rates (Wilson), means (bootstrap), statistics of a set (jackknife). NumPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % point of the normal distribution
RESAMPLES = 2000
_CHUNK = 4_000_000  # elements drawn at a time, to bound the memory of a bootstrap


@dataclass(frozen=True)
class Figure:
    """One number of a report with its uncertainty.

    Attributes:
      value: the estimate, in the unit of its metric; None if there is no data.
      low, high: ends of the 95 % interval; None if there is too little data.
      n: number of samples in the value.
      missing: number of samples without a score; they are left out, not counted as 0.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    missing: int = 0

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"Figure.{name} is {number}; expected a finite number or None")

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval."""
        return self.low is not None and self.high is not None


def split_missing(values: Sequence[float | None]) -> tuple[np.ndarray, int]:
    """The scores as a float64 [n] array, and the number of None. ValueError on NaN and infinity."""
    known = np.array([v for v in values if v is not None], dtype=np.float64)
    if not np.all(np.isfinite(known)):
        bad = next(i for i, v in enumerate(values) if v is not None and not math.isfinite(v))
        raise ValueError(f"value {bad} is {values[bad]}; use None for no score")
    return known, len(values) - known.size


def wilson(successes: float, n: int) -> tuple[float, float]:
    """The 95 % score interval of a rate (Wilson 1927, JASA 22:209), within [0, 1] even at 0 % and 100 %.

    successes may be fractional (a tie counts one half). ValueError unless n >= 1 and 0 <= successes <= n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"Wilson interval needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    p, z2 = successes / n, Z95 * Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def bootstrap_means(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Means of [resamples] samples drawn with replacement from values [n] (Efron 1979). The same seed gives the same samples."""
    if values.size == 0:
        raise ValueError("cannot resample an empty set")
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // values.size)
    means = []
    for start in range(0, resamples, rows):
        picks = rng.integers(0, values.size, size=(min(rows, resamples - start), values.size))
        means.append(values[picks].mean(axis=1))
    return np.concatenate(means)


def mean_figure(values: Sequence[float | None], seed: int = 0, resamples: int = RESAMPLES) -> Figure:
    """The mean with its percentile-bootstrap 95 % interval; a single value has no interval."""
    known, missing = split_missing(values)
    if known.size == 0:
        return Figure(None, None, None, 0, missing)
    if known.size == 1:
        return Figure(float(known[0]), None, None, 1, missing)
    low, high = np.percentile(bootstrap_means(known, seed, resamples), [2.5, 97.5])
    return Figure(float(known.mean()), float(low), float(high), known.size, missing)


def rate_figure(values: Sequence[float | None]) -> Figure:
    """The mean of values in [0, 1] (0, 1, or 0.5 for a tie) with its Wilson 95 % interval."""
    known, missing = split_missing(values)
    if known.size == 0:
        return Figure(None, None, None, 0, missing)
    total = float(known.sum())
    return Figure(total / known.size, *wilson(total, known.size), known.size, missing)


def jackknife_figure(value: float | None, left_out: np.ndarray) -> Figure:
    """value with a normal 95 % interval from the delete-one jackknife (Tukey 1958), cut to [0, 1].

    For statistics of a set, such as distinct-n: a bootstrap would draw duplicates and so lower the diversity. left_out [n]: the
    statistic without sample i; with any NaN (undefined) there is no interval.
    """
    n = left_out.size
    if value is None or n < 2 or not np.all(np.isfinite(left_out)):
        return Figure(value, None, None, n if value is not None else 0)
    half = Z95 * math.sqrt((n - 1) / n * float(np.sum((left_out - left_out.mean()) ** 2)))
    return Figure(value, max(0.0, value - half), min(1.0, value + half), n)


def is_binary(values: Sequence[float | None]) -> bool:
    """Whether there is a score, and all scores are 0 or 1."""
    known = [v for v in values if v is not None]
    return bool(known) and all(v in (0, 1) for v in known)
