"""The comparison on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlaif_jax.evaluation.compare import System, check_systems, figures, is_rate, metric_names
from rlaif_jax.evaluation.hacking import Candidate
from rlaif_jax.evaluation.headline import headline
from rlaif_jax.evaluation.report import Report
from rlaif_jax.evaluation.text import cell, label, printable

if TYPE_CHECKING:
    from rich.table import Table


def console_table(systems: Sequence[System], seed: int = 0, candidates: Sequence[Candidate] = ()) -> Table:
    """The comparison for the terminal: a row per metric, a column per system, with 95 % intervals; * marks an own signal.

    UserError if the systems do not answer the same prompts.
    """
    from rich.table import Table
    from rich.text import Text

    check_systems(systems)
    rows = {s.name: figures(s, seed) for s in systems}
    own = "; *: the score that the system was trained on" if any(c.own for c in candidates) else ""
    table = Table(title=f"{len(systems[0].samples)} prompts, with 95 % intervals{own}")
    table.add_column("metric")
    for system in systems:
        table.add_column(Text(system.name), justify="right")
    for name in metric_names(systems):
        rate = is_rate(systems, name)
        cells = []
        for s in systems:
            mark = "* " if any(c.name == s.name and c.is_own(name) for c in candidates) else ""
            cells.append(Text(mark + cell(rows[s.name].get(name), rate, brief=True)))  # Text: "[" in a cell is no markup
        table.add_row(Text(label(name, systems[0].language.unit)), *cells)
    return table


def console_lines(report: Report) -> list[str]:
    """The headline and the checks that do not pass, as lines for the terminal."""
    flags = report.flags()
    lines = [headline(report.systems, report.candidates, flags, report.wins, report.seed)]
    for name, found in flags.items():
        bad = [f for f in found if f.ok is not True]
        lines += [f"{name}: check {f.result}: {f.name}: {f.detail}" for f in bad]
        lines += [f"{name}: all checks for reward hacking pass"] if not bad else []
    return [printable(line) for line in lines]
