"""The comparison as tables for other programs: CSV with every number, and LaTeX for a paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from rlaif_jax.evaluation.compare import System, is_rate, metric_names
from rlaif_jax.evaluation.scores import Figure
from rlaif_jax.evaluation.text import cell_parts, escape_latex, label, printable

Rows = Mapping[str, Mapping[str, Figure]]  # system -> metric -> figure


def csv_table(systems: Sequence[System], rows: Rows) -> str:
    """One line per metric and system: metric, system, value, low, high (ends of the 95 % interval), n, missing."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("metric", "system", "value", "low", "high", "n", "missing"))
    for name in metric_names(systems):
        for s in systems:
            if name in rows[s.name]:
                f = rows[s.name][name]
                # A cell that begins with one of these is a formula in a spreadsheet.
                texts = [f"'{t}" if t[:1] in "=+-@" else t for t in (printable(name), printable(s.name))]
                writer.writerow((*texts, f.value, f.low, f.high, f.n, f.missing))
    return out.getvalue()


def latex_table(systems: Sequence[System], rows: Rows) -> str:
    """A tabular (package booktabs) with a line per metric and a column per system, with 95 % intervals."""
    lines = [rf"\begin{{tabular}}{{l{'r' * len(systems)}}}", r"\toprule"]
    lines += [" & ".join(["", *(escape_latex(s.name) for s in systems)]) + r" \\", r"\midrule"]
    for name in metric_names(systems):
        rate, cells = is_rate(systems, name), []
        for s in systems:
            parts = cell_parts(rows[s.name].get(name), rate)
            interval = rf" {{\scriptsize {escape_latex(parts['interval'])}}}" if parts["interval"] else ""
            cells.append(escape_latex(parts["value"] or "–") + interval)
        unit = systems[0].language.unit
        lines.append(" & ".join([escape_latex(label(name, unit)), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
