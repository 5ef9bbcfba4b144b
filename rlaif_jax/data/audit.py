"""What a preference data set gives away: leaks between files, and labels that length alone tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rlaif_jax.data.records import LabelledResponse, PreferencePair, Record, SftExample


def answered(records: Sequence[Record]) -> set[tuple[str, str]]:
    """Every (prompt, response) that these records show to a model."""
    seen: set[tuple[str, str]] = set()
    for r in records:
        if isinstance(r, PreferencePair):
            seen |= {(r.prompt, r.chosen), (r.prompt, r.rejected)}
        elif isinstance(r, (SftExample, LabelledResponse)):
            seen.add((r.prompt, r.response))
    return seen


def without_leaks(records: Sequence[Record], *training: Sequence[Record]) -> tuple[list[Record], int]:
    """The records none of whose (prompt, response) stands in the training records, and how many were dropped."""
    seen = set().union(*(answered(t) for t in training)) if training else set()
    kept = [r for r in records if not answered([r]) & seen]
    return kept, len(records) - len(kept)


@dataclasses.dataclass(frozen=True)
class LengthAudit:
    """How much of the label length tells: best threshold's accuracy, and the share of pairs whose longer side won."""

    threshold_accuracy: float
    longer_wins: float


def best_length_threshold(lengths: Sequence[int], labels: Sequence[int]) -> float:
    """Accuracy of the best rule "longer (or shorter) than t characters is good"."""
    x, y = np.asarray(lengths), np.asarray(labels)
    accuracies = [np.mean((x >= t) == y) for t in np.unique(x)]
    return float(max(*accuracies, *(1 - a for a in accuracies), max(y.mean(), 1 - y.mean())))


def length_audit(pairs: Sequence[PreferencePair]) -> LengthAudit:
    """Length give-away of preference pairs, in characters."""
    chosen, rejected = (np.array([len(getattr(p, s)) for p in pairs]) for s in ("chosen", "rejected"))
    labels = np.repeat([1, 0], len(pairs))
    wins = np.where(chosen == rejected, 0.5, chosen > rejected)
    return LengthAudit(best_length_threshold(np.concatenate([chosen, rejected]), labels), float(wins.mean()))
