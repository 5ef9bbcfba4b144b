"""The report of a run: a self-contained HTML page, the same as Markdown, and the numbers as JSON."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif_jax.errors import UserError
from rlaif_jax.evaluation.compare import (
    PLAIN,
    System,
    check_systems,
    difference,
    figures,
    is_rate,
    metric_names,
)
from rlaif_jax.evaluation.hacking import Flag, hack_flags
from rlaif_jax.evaluation.headline import HEADLINE_ORDER, headline
from rlaif_jax.evaluation.plots import Curve, Plot, bar_plot, curve_plot
from rlaif_jax.evaluation.scores import Figure
from rlaif_jax.evaluation.text import ABOUT, BADGES, cell, cell_parts, escape_markdown, label
from rlaif_jax.language.fonts import cjk_font, has_cjk

if TYPE_CHECKING:
    from rich.table import Table as RichTable

PLOTTED = (*HEADLINE_ORDER, "length_chars", "length_words", "distinct_2", "finished", "unique_responses")
NO_FONT = "No font with Chinese characters was found: plots show numbered labels instead of Chinese names."


@dataclass(frozen=True)
class Table:
    """An extra table. Cells are texts, numbers, Figures, or None (empty). Every row has one cell per column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r}, row {i}: {len(row)} cells for {len(self.columns)} columns")


@dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
      systems: in the order of the columns; all must answer the same prompts.
      curves: stage -> its learning curves.
      facts: seed, model size, seconds per stage, versions and so on.
      reference, candidate: names of the two systems that headline, differences and checks compare. A single system is not
        compared.
      baseline_flags: more checks, shown below those of the pair.
      shown: number of prompts shown with their answers, evenly spaced.
      seed: of the bootstrap.
    """

    title: str
    systems: tuple[System, ...]
    curves: Mapping[str, tuple[Curve, ...]] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    reference: str = "sft"
    candidate: str = "rl"
    baseline_flags: tuple[Flag, ...] = ()
    shown: int = 20
    seed: int = 0

    def pair(self) -> tuple[System, System] | None:
        """(reference, candidate), or None if there is one system only. UserError if a name is not among the systems."""
        if len(self.systems) < 2:
            return None
        known = {s.name: s for s in self.systems}
        for role in (self.reference, self.candidate):
            if role not in known:
                raise UserError(f"the report compares {role!r}, but the systems are {', '.join(known)}")
        return known[self.reference], known[self.candidate]


@dataclass(frozen=True)
class ReportPaths:
    """Paths of the three files of a report."""

    html: Path
    markdown: Path
    json: Path


def write_report(folder: Path, report: Report) -> ReportPaths:
    """Writes report.html, report.md and report.json into folder, each atomically.

    UserError if the systems do not answer the same prompts, or reference or candidate is unknown.
    """
    check_systems(report.systems)
    content = _content(report)
    paths = ReportPaths(folder / "report.html", folder / "report.md", folder / "report.json")
    texts = {
        paths.html: _environment(html=True).get_template("report.html.j2").render(content),
        paths.markdown: _environment(html=False).get_template("report.md.j2").render(content),
        paths.json: json.dumps(_numbers(report, content), ensure_ascii=False, indent=2, allow_nan=False) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        # an invalid character (a lone surrogate) in an answer must not stop the report
        part.write_text(text, encoding="utf-8", errors="replace")
        os.replace(part, path)
    return paths


def _content(report: Report) -> dict[str, Any]:
    """The values of the templates, which escape them."""
    pair = report.pair()
    rows = {s.name: figures(s, report.seed) for s in report.systems}
    flags = hack_flags(*pair, report.seed) if pair else []
    labels = [s.name for s in report.systems] + [c.name for curves in report.curves.values() for c in curves]
    notes = [*report.notes, *_missing_notes(report.systems, rows)]
    if has_cjk("".join(labels)) and cjk_font() is None:
        notes.append(NO_FONT)
    return {
        "title": report.title,
        "headline": headline(report.systems, pair, flags, report.seed),
        "systems": report.systems,
        "pair": pair,
        "n": len(report.systems[0].samples),
        "metrics": _metric_rows(report, rows),
        "figures": rows,
        "bars": _bars(report.systems, rows),
        "flags": [*flags, *report.baseline_flags],
        "plots": {stage: plot for stage, curves in report.curves.items() if (plot := curve_plot(stage, curves))},
        "tables": [(t, [[cell(c) for c in row] for row in t.rows]) for t in report.tables],
        "samples": _shown_samples(report.systems, report.shown),
        "facts": {str(k): str(v) for k, v in report.facts.items()},
        "notes": notes,
    }


def _metric_rows(report: Report, rows: Mapping[str, Mapping[str, Figure]]) -> list[dict[str, Any]]:
    """One row of the comparison per metric: label, explanation, a figure per system, and the paired difference if there is one."""
    pair, found = report.pair(), []
    for name in metric_names(report.systems):
        rate, change = is_rate(report.systems, name), None
        if pair and (name in PLAIN or all(name in s.score_names for s in pair)):
            change = difference(*pair, name, report.seed)
        found.append({
            "label": label(name, report.systems[0].language.unit), "about": ABOUT.get(name, ""),
            "cells": [cell_parts(rows[s.name].get(name), rate) for s in report.systems],
            "change": cell_parts(change, rate, sign=True),
        })  # fmt: skip
    return found


def _bars(systems: Sequence[System], rows: Mapping[str, Mapping[str, Figure]]) -> Plot:
    empty = Figure(None, None, None, 0)
    names = [m for m in PLOTTED if any(m in rows[s.name] for s in systems)]
    panels = {label(m, systems[0].language.unit): [rows[s.name].get(m, empty) for s in systems] for m in names}
    return bar_plot([s.name for s in systems], panels, [is_rate(systems, m) for m in names])


def _missing_notes(systems: Sequence[System], rows: Mapping[str, Mapping[str, Figure]]) -> list[str]:
    found = []
    for s in systems:
        lost = [f"{label(m)} {f.missing} of {len(s.samples)}" for m, f in rows[s.name].items() if f.missing]
        if lost:
            found.append(f"{s.name}, answers without a score: {', '.join(lost)}.")
    return found


def _shown_samples(systems: Sequence[System], shown: int) -> list[dict[str, Any]]:
    """Evenly spaced prompts (not selected by hand) with the answers of every system."""
    total = len(systems[0].samples)
    rates = {m: is_rate(systems, m) for m in metric_names(systems)}
    count = min(shown, total)
    return [
        {"index": i, "prompt": systems[0].samples[i].prompt, "answers": [_answer(s, i, rates) for s in systems]}
        for i in (k * total // count for k in range(count))
    ]


def _answer(system: System, i: int, rates: Mapping[str, bool]) -> dict[str, Any]:
    """The text of an answer and its badges, each (text, kind)."""
    sample, badges = system.samples[i], []
    for name, value in sample.scores.items():
        if value is None:
            badges.append((f"{name}: no score", "none"))
        elif rates[name]:
            badges.append((f"{BADGES.get(name, name)}: {'yes' if value else 'no'}", "good" if value else "bad"))
        else:
            badges.append((f"{name} {value:.2f}", "plain"))
    badges.append((f"{system.language.length(sample.response)} {system.language.unit}", "plain"))
    if not sample.finished:
        badges.append(("cut off", "bad"))
    return {"text": sample.response, "badges": badges}


def _numbers(report: Report, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of report.json: only finite numbers and text."""
    systems, changes = report.systems, {}
    for i, a in enumerate(systems):
        for b in systems[i + 1 :]:
            shared = [m for m in (*a.score_names, *a.plain) if m in PLAIN or m in b.score_names]
            changes[f"{b.name} - {a.name}"] = {m: asdict(difference(a, b, m, report.seed)) for m in shared}
    return {
        "title": report.title,
        "headline": content["headline"],
        "samples": content["n"],
        "rows": {name: {m: asdict(f) for m, f in row.items()} for name, row in content["figures"].items()},
        "differences": changes,
        "flags": [asdict(flag) for flag in content["flags"]],
        "facts": content["facts"],
        "notes": content["notes"],
    }


def _environment(html: bool) -> Any:
    """Templates that escape every value, since texts of models are data. For Markdown, `finalize` escapes."""
    import jinja2

    options = {
        "loader": jinja2.PackageLoader("rlaif_jax.evaluation", "templates"),
        "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True,
    }  # fmt: skip
    if not html:
        return jinja2.Environment(autoescape=False, finalize=escape_markdown, **options)
    environment = jinja2.Environment(autoescape=True, **options)
    environment.filters["data_uri"] = _data_uri
    return environment


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")


def console_table(systems: Sequence[System], seed: int = 0) -> RichTable:
    """The comparison for the terminal: a row per metric, a column per system, with 95 % intervals.

    UserError if the systems do not answer the same prompts.
    """
    from rich.table import Table as RichTable
    from rich.text import Text

    check_systems(systems)
    rows = {s.name: figures(s, seed) for s in systems}
    table = RichTable(title=f"{len(systems[0].samples)} prompts, with 95 % intervals")
    table.add_column("metric")
    for system in systems:
        table.add_column(Text(system.name), justify="right")
    for name in metric_names(systems):
        rate = is_rate(systems, name)
        # Text objects, so that "[" in a cell is not markup
        cells = (Text(cell(rows[s.name].get(name), rate, brief=True)) for s in systems)
        table.add_row(Text(label(name, systems[0].language.unit)), *cells)
    return table
