"""How well scores agree with labels. NumPy only; missing verdicts are left out by the caller."""

from __future__ import annotations

import numpy as np


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """P(score of a good one > score of a bad one), ties half (Mann-Whitney)."""
    good, bad = scores[labels == 1], scores[labels == 0]
    gaps = good[:, None] - bad[None, :]
    return float(np.mean((gaps > 0) + 0.5 * (gaps == 0)))


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of equal entries."""
    return float(np.mean(predicted == labels))


def balanced_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the accuracies on label 1 and on label 0."""
    return float(np.mean([np.mean(predicted[labels == c] == c) for c in (0, 1)]))


def cohen_kappa(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Agreement beyond chance of two 0/1 raters (Cohen 1960); 1 where both always say the same one thing."""
    observed = np.mean(predicted == labels)
    p, q = np.mean(predicted), np.mean(labels)
    expected = p * q + (1 - p) * (1 - q)
    return 1.0 if expected == 1 else float((observed - expected) / (1 - expected))
