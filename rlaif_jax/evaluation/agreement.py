"""Agreement of an evaluator with labels, and of a reward model with preference pairs. NumPy only.

Arrays are [n]. `mask` is 1 where there is a score. Samples without a score are left out and counted as missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rlaif_jax.evaluation.scores import Figure, rate_figure

SIMILAR_LENGTH = (0.8, 1.25)  # chosen / rejected, in characters


@dataclass(frozen=True)
class Confusion:
    """Counts of (predicted, label), and of the samples without a score."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int
    missing: int = 0

    @property
    def n(self) -> int:
        """Number of samples with a score."""
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative


@dataclass(frozen=True)
class Agreement:
    """How well scores agree with 0/1 labels. A figure is None if it is undefined: with one class only, or without any score."""

    accuracy: Figure
    balanced_accuracy: float | None
    kappa: float | None
    auc: float | None
    confusion: Confusion


def _known(mask: ArrayLike | None, *arrays: ArrayLike) -> tuple[list[np.ndarray], int]:
    """The entries with mask 1, as float64, and the number of the others. ValueError on unequal shapes or NaN."""
    found = [np.asarray(a, dtype=np.float64) for a in arrays]
    keep = np.ones(found[0].shape, bool) if mask is None else np.asarray(mask).astype(bool)
    shapes = {a.shape for a in (*found, keep)}
    if len(shapes) > 1 or len(found[0].shape) != 1:
        raise ValueError(f"expected arrays of one shape [n], got {sorted(shapes)}")
    found = [a[keep] for a in found]
    if not all(np.all(np.isfinite(a)) for a in found):
        raise ValueError("NaN or infinity where mask is 1; set mask = 0 for samples without a score")
    return found, int(keep.size - keep.sum())


def _check_labels(labels: np.ndarray) -> None:
    if not np.all((labels == 0) | (labels == 1)):
        raise ValueError(f"labels must be 0 or 1, found {sorted(set(labels.tolist()) - {0.0, 1.0})[:3]}")


def confusion(scores: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, threshold: float = 0.5) -> Confusion:
    """The counts, with predicted = score > threshold; a tie of votes (0.5) means bad. labels are 0/1.

    ValueError on other labels, unequal shapes or NaN.
    """
    (s, y), missing = _known(mask, scores, labels)
    _check_labels(y)
    good, said = y == 1, s > threshold
    counts = (good & said, ~good & said, good & ~said, ~good & ~said)
    return Confusion(*(int(c.sum()) for c in counts), missing)


def agreement(scores: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, threshold: float = 0.5) -> Agreement:
    """All figures. scores: probabilities or 0/1 predictions; score > threshold means "good".

    The accuracy has a Wilson 95 % interval.
    """
    c = confusion(scores, labels, mask, threshold)
    right = c.true_positive + c.true_negative
    figure = rate_figure([1.0] * right + [0.0] * (c.n - right))
    figure = Figure(figure.value, figure.low, figure.high, c.n, c.missing)
    return Agreement(figure, _balanced(c), _kappa(c), auc(scores, labels, mask), c)


def accuracy(predicted: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None) -> float | None:
    """Share of right 0/1 predictions; None if there are none."""
    return agreement(predicted, labels, mask).accuracy.value


def balanced_accuracy(predicted: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None) -> float | None:
    """Mean of two shares: of the good samples predicted good, and of the bad ones predicted bad. None if a class is empty."""
    return _balanced(confusion(predicted, labels, mask))


def cohen_kappa(predicted: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None) -> float | None:
    """Agreement beyond chance of two 0/1 raters (Cohen 1960).

    (observed - expected) / (1 - expected). None if both always give the same rating, since expected is then 1.
    """
    return _kappa(confusion(predicted, labels, mask))


def auc(scores: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None) -> float | None:
    """Area under the ROC curve: P(score of a good sample > score of a bad one), ties one half. None with one class only.

    The rank statistic of Mann and Whitney (Hanley & McNeil 1982) with mid-ranks, O(n log n).
    """
    (s, y), _ = _known(mask, scores, labels)
    _check_labels(y)
    good = int((y == 1).sum())
    bad = y.size - good
    if not good or not bad:
        return None
    _, place, count = np.unique(s, return_inverse=True, return_counts=True)
    mid_rank = (np.cumsum(count) - (count - 1) / 2)[place]  # 1-based mean rank of each tied block
    return float((mid_rank[y == 1].sum() - good * (good + 1) / 2) / (good * bad))


def pairwise_accuracy(chosen: ArrayLike, rejected: ArrayLike, mask: ArrayLike | None = None) -> Figure:
    """Share of pairs with score(chosen) > score(rejected), ties one half, with its Wilson 95 % interval.

    chosen, rejected: scores [n]; mask: 1 where both have one.
    """
    (a, b), missing = _known(mask, chosen, rejected)
    figure = rate_figure(np.where(a == b, 0.5, (a > b).astype(np.float64)).tolist())
    return Figure(figure.value, figure.low, figure.high, figure.n, missing)


def similar_length(chosen: ArrayLike, rejected: ArrayLike, bounds: tuple[float, float] = SIMILAR_LENGTH) -> np.ndarray:
    """bool [n]: pairs whose ratio of lengths in characters, chosen / rejected, is within bounds (inclusive)."""
    (a, b), _ = _known(None, chosen, rejected)
    return (a >= bounds[0] * b) & (a <= bounds[1] * b) & (b > 0)


def length_matched_accuracy(
    chosen: ArrayLike, rejected: ArrayLike, chosen_chars: ArrayLike, rejected_chars: ArrayLike,
    mask: ArrayLike | None = None, bounds: tuple[float, float] = SIMILAR_LENGTH,
) -> Figure:  # fmt: skip
    """Pairwise accuracy on pairs of similar length, where the length does not reveal the better answer.

    missing counts the pairs of similar length without a score; other pairs are not counted at all.
    """
    matched = similar_length(chosen_chars, rejected_chars, bounds)
    a, b = (np.asarray(x)[matched] for x in (chosen, rejected))
    return pairwise_accuracy(a, b, None if mask is None else np.asarray(mask)[matched])


def _balanced(c: Confusion) -> float | None:
    good, bad = c.true_positive + c.false_negative, c.true_negative + c.false_positive
    if not good or not bad:
        return None
    return 0.5 * (c.true_positive / good + c.true_negative / bad)


def _kappa(c: Confusion) -> float | None:
    if c.n == 0:
        return None
    observed = (c.true_positive + c.true_negative) / c.n
    good, said = c.true_positive + c.false_negative, c.true_positive + c.false_positive
    expected = (good * said + (c.n - good) * (c.n - said)) / c.n**2
    return None if expected == 1 else (observed - expected) / (1 - expected)
