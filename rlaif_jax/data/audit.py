"""Checks of data sets: leaks between training and evaluation files, and labels that the length alone predicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlaif_jax.data.records import LabelledResponse, PreferencePair, Record, SftExample

Sample = tuple[str, str]  # (prompt, response)


def answered(records: Sequence[Record]) -> set[Sample]:
    """Every (prompt, response) in these records."""
    seen: set[Sample] = set()
    for r in records:
        if isinstance(r, PreferencePair):
            seen |= {(r.prompt, r.chosen), (r.prompt, r.rejected)}
        elif isinstance(r, (SftExample, LabelledResponse)):
            seen.add((r.prompt, r.response))
    return seen


def praised(records: Sequence[Record]) -> set[Sample]:
    """Every (prompt, response) that is good according to these records: chosen, labelled 1, or an SFT answer."""
    seen: set[Sample] = set()
    for r in records:
        if isinstance(r, PreferencePair):
            seen.add((r.prompt, r.chosen))
        elif isinstance(r, SftExample) or (isinstance(r, LabelledResponse) and r.label == 1):
            seen.add((r.prompt, r.response))
    return seen


def without_leaks(records: Sequence[Record], *training: Sequence[Record]) -> tuple[list[Record], int]:
    """The records that share no (prompt, response) with the training records, and the number of the others."""
    seen = set().union(*(answered(t) for t in training)) if training else set()
    kept = [r for r in records if not answered([r]) & seen]
    return kept, len(records) - len(kept)


@dataclasses.dataclass(frozen=True)
class LengthAudit:
    """How well the length predicts the label.

    Attributes:
      threshold_accuracy: of the best length threshold.
      longer_wins: share of pairs whose longer answer is the chosen one (equal lengths count one half); None for labelled responses.
    """

    threshold_accuracy: float
    longer_wins: float | None


def best_length_threshold(lengths: Sequence[int], labels: Sequence[int]) -> float:
    """Accuracy of the best rule "at least (or less than) t characters is good", constant rules included."""
    x, y = np.asarray(lengths), np.asarray(labels)
    accuracies = [np.mean((x >= t) == y) for t in [*np.unique(x), np.max(x) + 1]]
    return float(max(*accuracies, *(1 - a for a in accuracies)))


def length_audit(records: Sequence[PreferencePair] | Sequence[LabelledResponse]) -> LengthAudit:
    """How well the length in characters predicts the label of pairs or labelled responses."""
    if isinstance(records[0], LabelledResponse):
        lengths, labels = [len(r.response) for r in records], [r.label for r in records]
        return LengthAudit(best_length_threshold(lengths, labels), None)
    chosen, rejected = (np.array([len(getattr(p, s)) for p in records]) for s in ("chosen", "rejected"))
    labels = np.repeat([1, 0], len(records))
    wins = np.where(chosen == rejected, 0.5, chosen > rejected)
    return LengthAudit(best_length_threshold(np.concatenate([chosen, rejected]), labels), float(wins.mean()))


@dataclasses.dataclass(frozen=True)
class FileAudit:
    """Counts of one file: records, repeated records, pairs with chosen == rejected; and its length audit (None without labels)."""

    records: int
    duplicates: int
    same_sides: int
    length: LengthAudit | None


@dataclasses.dataclass(frozen=True)
class Overlap:
    """How many records of an evaluation file are also in a training file.

    `leaked` records have a (prompt, response) that is also in the training file; `known_prompts` counts those with such a prompt.
    `leak_rule_accuracy` is the accuracy of the rule "good if it is a good answer in the training file" on labelled responses (None
    for other records). If it is much above the share of the larger class, the leak reveals the labels.
    """

    train: str
    eval: str
    records: int
    leaked: int
    known_prompts: int
    leak_rule_accuracy: float | None


@dataclasses.dataclass(frozen=True)
class AuditReport:
    """Results per file, and per pair of a training and an evaluation file."""

    files: Mapping[str, FileAudit]
    overlaps: Sequence[Overlap]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """The findings as text, one line per file or overlap; those without findings are left out."""
        out = []
        for name, f in self.files.items():
            found = [f"{f.duplicates} of {f.records} records are repeated"] if f.duplicates else []
            found += [f"{f.same_sides} pairs have chosen == rejected"] if f.same_sides else []
            found += [f"a length threshold alone has an accuracy of {f.length.threshold_accuracy:.1%}"] if f.length else []
            if f.length and f.length.longer_wins is not None:
                found.append(f"the longer answer is the chosen one in {f.length.longer_wins:.1%} of the pairs")
            out += [f"{name}: " + "; ".join(found)] if found else []
        for o in self.overlaps:
            found = [f"{o.leaked} of {o.records} records are also in {o.train}"] if o.leaked else []
            found += [f"{o.known_prompts} prompts are also in {o.train}"] if o.known_prompts else []
            if o.leaked and o.leak_rule_accuracy is not None:
                found.append(f"the rule 'good if it is a good answer there' has an accuracy of {o.leak_rule_accuracy:.1%}")
            out += [f"{o.eval}: " + "; ".join(found)] if found else []
        return out


def audit(
    train: Mapping[str, Sequence[Record]], eval: Mapping[str, Sequence[Record]], *, prefix: str = ""
) -> AuditReport:  # fmt: skip
    """Audits named training and evaluation files against each other. The same name in both mappings is the same file.

    `prefix` is removed from the beginning of prompts before they are compared: RL prompts often have an instruction that the
    prompts of other files lack.
    """
    files = {name: _file(records) for name, records in {**train, **eval}.items()}
    train = {name: [_bare(r, prefix) for r in records] for name, records in train.items()}
    eval = {name: [_bare(r, prefix) for r in records] for name, records in eval.items()}
    overlaps = [_overlap(t, train[t], e, eval[e]) for e in eval for t in train if t != e]
    return AuditReport(files, overlaps)


def _bare(record: Record, prefix: str) -> Record:
    return dataclasses.replace(record, prompt=record.prompt.removeprefix(prefix)) if prefix else record


def _file(records: Sequence[Record]) -> FileAudit:
    keys = [tuple(str(v) for n, v in vars(r).items() if n not in ("meta", "margin")) for r in records]
    same = sum(isinstance(r, PreferencePair) and r.chosen == r.rejected for r in records)
    has_labels = bool(records) and isinstance(records[0], (PreferencePair, LabelledResponse))
    return FileAudit(len(records), len(keys) - len(set(keys)), same, length_audit(records) if has_labels else None)


def _overlap(train_name: str, train: Sequence[Record], name: str, records: Sequence[Record]) -> Overlap:
    seen, good, prompts = answered(train), praised(train), {r.prompt for r in train}
    right = None
    if records and all(isinstance(r, LabelledResponse) for r in records):
        right = float(np.mean([((r.prompt, r.response) in good) == r.label for r in records]))
    leaked = sum(bool(answered([r]) & seen) for r in records)
    return Overlap(train_name, name, len(records), leaked, sum(r.prompt in prompts for r in records), right)
