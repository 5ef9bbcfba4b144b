"""Tables of the report about the AI feedback: the rounds of the principle game, the changed principles, and a debate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif_jax.evaluation.plots import Curve
from rlaif_jax.evaluation.report import Table

_ROUND_COLUMNS = {
    "round": "round", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy", "kappa": "kappa",
    "fooled": "judge fooled by generator", "accepted": "edits accepted", "rolled_back": "edits rolled back",
    "principles": "number of principles",
}  # fmt: skip
AGREEMENT = (
    "Accuracy: share of right verdicts. Balanced accuracy: mean of the share of good answers found good and of bad ones found bad; "
    "50 % is chance. Kappa: agreement beyond chance; 0 is chance, 1 is perfect."
)
_PLOTTED = ("balanced_accuracy", "kappa", "fooled")


def judge_tables(folder: Path) -> tuple[Table, ...]:
    """Three tables: rounds of the game (validation labels), judge before and after it (test labels), changed principles."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    rows = tuple(tuple(_cell(row[name]) for name in _ROUND_COLUMNS) for row in result["rounds"])
    rounds = Table(
        "The judge's principles, round by round", tuple(_ROUND_COLUMNS.values()), rows,
        "Agreement of the judge with labelled validation answers. Edits that lower it are rolled back. Round 0: before any edit. "
        + AGREEMENT + " Judge fooled by generator: share of the flawed answers of the generator that the judge found good.",
    )  # fmt: skip
    names = ("balanced_accuracy", "accuracy", "kappa", "n")
    test = Table(
        "The judge on labelled test answers, which the game did not use",
        ("principles", *(_ROUND_COLUMNS.get(n, n) for n in names)),
        tuple((which, *(_cell(result[key][n]) for n in names))
              for which, key in (("before the game", "test_before"), ("after the game", "test_after"))),
    )  # fmt: skip
    lines = (folder / "diff.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    change = Table("How the principles changed", ("", "principle"), tuple((line[:1].strip(), line[2:]) for line in lines))
    return rounds, test, change


def judge_curves(folder: Path) -> tuple[Curve, ...]:
    """Balanced accuracy, kappa and the generator's rate of success, by round."""
    rows = json.loads((folder / "result.json").read_text(encoding="utf-8"))["rounds"]
    curves = []
    for name in _PLOTTED:
        points = [(r["round"], r[name]) for r in rows if r[name] is not None and r[name] == r[name]]
        if points:
            curves.append(Curve(_ROUND_COLUMNS[name], tuple(p[0] for p in points), tuple(p[1] for p in points), xlabel="round"))
    return tuple(curves)


def debate_table(items: Sequence[Mapping[str, Any]]) -> Table | None:
    """An example of a debate: the first prompt with an accepted and a rejected answer."""
    item = next((i for i in items if i["pairs"]), None)
    if item is None:
        return None
    pair = item["pairs"][0]
    sides = [next(d for d in item["debates"] if d["response"] == pair[side]) for side in ("chosen", "rejected")]
    labels = {
        "response": "answer", "positive": "positive agent", "negative": "negative agent", "verdict": "judge's verdict",
        "reason": "judge's reason", "final": "verdict after review", "final_reason": "reason of the review",
    }  # fmt: skip
    rows = tuple((label, *(str(d[name]) for d in sides)) for name, label in labels.items())
    return Table(f"One debate: {item['prompt']}", ("", "accepted", "rejected"), rows)


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
