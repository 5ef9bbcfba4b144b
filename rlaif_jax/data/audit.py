"""What data sets give away: leaks between training and evaluation files, and labels that length alone tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlaif_jax.data.records import LabelledResponse, PreferencePair, Record, SftExample

Sample = tuple[str, str]  # (prompt, response)


def answered(records: Sequence[Record]) -> set[Sample]:
    """Every (prompt, response) that these records show to a model."""
    seen: set[Sample] = set()
    for r in records:
        if isinstance(r, PreferencePair):
            seen |= {(r.prompt, r.chosen), (r.prompt, r.rejected)}
        elif isinstance(r, (SftExample, LabelledResponse)):
            seen.add((r.prompt, r.response))
    return seen


def praised(records: Sequence[Record]) -> set[Sample]:
    """Every (prompt, response) that these records show as good: chosen, labelled 1, or to be imitated."""
    seen: set[Sample] = set()
    for r in records:
        if isinstance(r, PreferencePair):
            seen.add((r.prompt, r.chosen))
        elif isinstance(r, SftExample) or (isinstance(r, LabelledResponse) and r.label == 1):
            seen.add((r.prompt, r.response))
    return seen


def without_leaks(records: Sequence[Record], *training: Sequence[Record]) -> tuple[list[Record], int]:
    """The records none of whose (prompt, response) stands in the training records, and how many were dropped."""
    seen = set().union(*(answered(t) for t in training)) if training else set()
    kept = [r for r in records if not answered([r]) & seen]
    return kept, len(records) - len(kept)


@dataclasses.dataclass(frozen=True)
class LengthAudit:
    """How much of the label length tells: best threshold's accuracy, and the share of pairs whose longer side won.

    Labelled responses have no sides: their `longer_wins` is None. Equal lengths count one half.
    """

    threshold_accuracy: float
    longer_wins: float | None


def best_length_threshold(lengths: Sequence[int], labels: Sequence[int]) -> float:
    """Accuracy of the best rule "at least (or less than) t characters is good"; constant rules are among them."""
    x, y = np.asarray(lengths), np.asarray(labels)
    accuracies = [np.mean((x >= t) == y) for t in [*np.unique(x), np.max(x) + 1]]
    return float(max(*accuracies, *(1 - a for a in accuracies)))


def length_audit(records: Sequence[PreferencePair] | Sequence[LabelledResponse]) -> LengthAudit:
    """Length give-away of preference pairs or labelled responses, in characters."""
    if isinstance(records[0], LabelledResponse):
        lengths, labels = [len(r.response) for r in records], [r.label for r in records]
        return LengthAudit(best_length_threshold(lengths, labels), None)
    chosen, rejected = (np.array([len(getattr(p, s)) for p in records]) for s in ("chosen", "rejected"))
    labels = np.repeat([1, 0], len(records))
    wins = np.where(chosen == rejected, 0.5, chosen > rejected)
    return LengthAudit(best_length_threshold(np.concatenate([chosen, rejected]), labels), float(wins.mean()))


@dataclasses.dataclass(frozen=True)
class FileAudit:
    """One file: records, repeated ones, pairs with chosen == rejected, length give-away (None without labels)."""

    records: int
    duplicates: int
    same_sides: int
    length: LengthAudit | None


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What one evaluation file shares with one training file, as counts of the evaluation file's records.

    `leaked` records have a (prompt, response) that stands word for word in training; `known_prompts` a prompt that
    does. `leak_rule_accuracy` is that of the rule "stands in training as a good answer -> good", on labelled
    responses; None for other kinds. Much above the share of the larger class, it says that the leak gives labels away.
    """

    train: str
    eval: str
    records: int
    leaked: int
    known_prompts: int
    leak_rule_accuracy: float | None


@dataclasses.dataclass(frozen=True)
class AuditReport:
    """Findings per file and per (training, evaluation) pair of files."""

    files: Mapping[str, FileAudit]
    overlaps: Sequence[Overlap]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """One sentence per finding, for people; files and overlaps without a finding are left out."""
        out = []
        for name, f in self.files.items():
            found = [f"{f.duplicates} of {f.records} records are repeated"] if f.duplicates else []
            found += [f"{f.same_sides} pairs have chosen == rejected"] if f.same_sides else []
            found += [f"a length threshold alone scores {f.length.threshold_accuracy:.1%}"] if f.length else []
            if f.length and f.length.longer_wins is not None:
                found.append(f"the longer answer is the chosen one in {f.length.longer_wins:.1%}")
            out += [f"{name}: " + "; ".join(found)] if found else []
        for o in self.overlaps:
            found = [f"{o.leaked} of {o.records} records stand word for word in {o.train}"] if o.leaked else []
            found += [f"{o.known_prompts} prompts stand in {o.train}"] if o.known_prompts else []
            if o.leaked and o.leak_rule_accuracy is not None:
                found.append(f"the rule 'a good answer there is good' scores {o.leak_rule_accuracy:.1%}")
            out += [f"{o.eval}: " + "; ".join(found)] if found else []
        return out


def audit(
    train: Mapping[str, Sequence[Record]], eval: Mapping[str, Sequence[Record]], *, prefix: str = ""
) -> AuditReport:  # fmt: skip
    """Audits named training and evaluation files against each other. A file in both mappings is one file.

    `prefix` is taken off prompts that begin with it before they are compared: RL prompts often carry an instruction
    that the other files lack.
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
