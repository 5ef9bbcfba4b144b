"""The report of a run: a self-contained HTML page, the same as Markdown, the numbers as JSON, CSV and LaTeX, the plots as SVG."""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlaif_jax import state_files
from rlaif_jax.errors import UserError
from rlaif_jax.evaluation import export
from rlaif_jax.evaluation.compare import PLAIN, WHOLE_SET, System, check_systems, difference, figures, is_rate, metric_names
from rlaif_jax.evaluation.hacking import Candidate, Flag, hack_flags
from rlaif_jax.evaluation.headline import HEADLINE_ORDER, headline
from rlaif_jax.evaluation.plots import Curve, Plot, bar_plots, curve_plots
from rlaif_jax.evaluation.scores import Figure
from rlaif_jax.evaluation.text import ABOUT, BADGES, cell, cell_parts, escape_markdown, label, printable
from rlaif_jax.evaluation.wins import Wins
from rlaif_jax.language.fonts import cjk_font, has_cjk

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
      candidates: the systems that headline and checks are about, each with its reference and its own training signal.
      start: the system that every other one is compared with, where a candidate names no reference of its own.
      wins: comparisons of two answers at a time.
      curves: stage -> its learning curves.
      facts: seed, model size, seconds per stage, versions and so on.
      settings: settings that differ from the defaults: field -> (value, default).
      shown: number of prompts shown with their answers, evenly spaced.
      seed: of the bootstrap.
    """

    title: str
    systems: tuple[System, ...]
    candidates: tuple[Candidate, ...] = ()
    start: str = "sft"
    wins: tuple[Wins, ...] = ()
    curves: Mapping[str, tuple[Curve, ...]] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    shown: int = 20
    seed: int = 0

    def system(self, name: str) -> System:
        """A system by name. UserError where there is none."""
        known = {s.name: s for s in self.systems}
        if name not in known:
            raise UserError(f"the report compares {name!r}, but the systems are {', '.join(known)}")
        return known[name]

    def pairs(self) -> list[tuple[System, System]]:
        """(a, b) of every difference b - a: every system against what it started from, then every two candidates."""
        starts = {c.name: c.reference for c in self.candidates}
        start = self.start if self.start in {s.name for s in self.systems} else self.systems[0].name
        found = []
        for system in self.systems:
            other = starts.get(system.name, start)
            if system.name == start and system != self.systems[0]:
                found.append((self.systems[0], system))
            elif system.name != other and system != self.systems[0]:
                found.append((self.system(other), system))
        names = [c.name for c in self.candidates]
        return found + [(self.system(a), self.system(b)) for a, b in itertools.combinations(names, 2)]

    def flags(self) -> dict[str, list[Flag]]:
        """Candidate -> its checks for reward hacking."""
        return {
            c.name: hack_flags(self.system(c.reference), self.system(c.name), c, self.seed)
            for c in self.candidates if c.name != c.reference
        }  # fmt: skip


@dataclass(frozen=True)
class ReportPaths:
    """Paths of the files of a report; `figures` is a folder of SVG files."""

    html: Path
    markdown: Path
    json: Path
    csv: Path
    latex: Path
    figures: Path


def write_report(folder: Path, report: Report) -> ReportPaths:
    """Writes report.html, report.md, report.json, report.csv, report.tex and figures/*.svg into folder, each atomically.

    UserError if the systems do not answer the same prompts, or a candidate or its reference is unknown.
    """
    check_systems(report.systems)
    content = _content(report)
    paths = ReportPaths(*(folder / f"report.{kind}" for kind in ("html", "md", "json", "csv", "tex")), folder / "figures")
    texts = {
        paths.html: _environment(html=True).get_template("report.html.j2").render(content),
        paths.markdown: _environment(html=False).get_template("report.md.j2").render(content),
        paths.json: json.dumps(_numbers(report, content), ensure_ascii=False, indent=2, allow_nan=False) + "\n",
        paths.csv: export.csv_table(report.systems, content["figures"]),
        paths.latex: export.latex_table(report.systems, content["figures"]),
    }
    for group, plots in {"metrics": content["bars"], **content["plots"]}.items():
        texts |= {paths.figures / f"{_file_name(group)}_{_file_name(name)}.svg": plot.svg for name, plot in plots.items()}
    for path, text in texts.items():  # an invalid character (a lone surrogate) in an answer must not stop the report
        state_files.write_text(path, text.encode("utf-8", errors="replace").decode("utf-8"))
    return paths


def _file_name(text: str) -> str:
    return re.sub(r"\W+", "_", text).strip("_")[:60] or "figure"


def _content(report: Report) -> dict[str, Any]:
    """The values of the templates, which escape them."""
    rows, flags = {s.name: figures(s, report.seed) for s in report.systems}, report.flags()
    labels = [s.name for s in report.systems] + [c.name for curves in report.curves.values() for c in curves]
    notes = [*report.notes, *_missing_notes(report.systems, rows)]
    if has_cjk("".join(labels)) and cjk_font() is None:
        notes.append(NO_FONT)
    return {
        "title": report.title,
        "headline": headline(report.systems, report.candidates, flags, report.wins, report.seed),
        "systems": report.systems,
        "pairs": [(a.name, b.name) for a, b in report.pairs()],
        "n": len(report.systems[0].samples),
        "metrics": _metric_rows(report, rows),
        "figures": rows,
        "bars": _bars(report.systems, rows),
        "flags": flags,
        "plots": {stage: plots for stage, curves in report.curves.items() if (plots := curve_plots(stage, curves))},
        "wins": [(w.a, w.b, w.judge, _share(w), _own(report, w.a, w.by) or _own(report, w.b, w.by)) for w in report.wins],
        "tables": [(t, [[cell(c) for c in row] for row in t.rows]) for t in report.tables],
        "samples": _shown_samples(report.systems, report.shown),
        "facts": {str(k): str(v) for k, v in report.facts.items()},
        "settings": report.settings,
        "notes": notes,
    }


def _share(w: Wins) -> dict[str, str]:
    count = f"{w.share.n}" + (f" ({w.share.missing} without a verdict)" if w.share.missing else "")
    return cell_parts(w.share, True) | {"count": count}


def _own(report: Report, system: str, score: str) -> bool:
    """Whether this system was trained on this score."""
    return any(c.name == system and c.is_own(score) for c in report.candidates)


def _metric_rows(report: Report, rows: Mapping[str, Mapping[str, Figure]]) -> list[dict[str, Any]]:
    """One row of the comparison per metric: label, explanation, a figure per system, and every paired difference."""
    found, total = [], len(report.systems[0].samples)
    for name in metric_names(report.systems):
        rate, about = is_rate(report.systems, name), ABOUT.get(name, "" if name in WHOLE_SET else "mean of this reward function")
        having = [s for s in report.systems if name in PLAIN + WHOLE_SET or name in s.score_names]
        if (applies := max(s.applicable(name) for s in having)) < total:
            about += f"; applies to {applies} of {total} prompts"
        changes = []
        for a, b in report.pairs():
            both = name in PLAIN or all(name in s.score_names for s in (a, b))
            changes.append(cell_parts(difference(a, b, name, report.seed) if both else None, rate, sign=True) | {"note": ""})
        cells = [cell_parts(rows[s.name].get(name), rate) | {"own": _own(report, s.name, name)} for s in report.systems]
        unit = report.systems[0].language.unit
        found.append({"label": label(name, unit), "about": about, "cells": cells, "changes": changes})
    return found


def _bars(systems: Sequence[System], rows: Mapping[str, Mapping[str, Figure]]) -> dict[str, Plot]:
    empty = Figure(None, None, None, 0)
    names = [m for m in PLOTTED if any(m in rows[s.name] for s in systems)]
    panels = {label(m, systems[0].language.unit): [rows[s.name].get(m, empty) for s in systems] for m in names}
    return bar_plots([s.name for s in systems], panels, [is_rate(systems, m) for m in names])


def _missing_notes(systems: Sequence[System], rows: Mapping[str, Mapping[str, Figure]]) -> list[str]:
    found = []
    for s in systems:
        lost = [f"{label(m)} {f.missing} of {f.n + f.missing}" for m, f in rows[s.name].items() if f.missing]
        if lost:
            found.append(f"{s.name}, answers without a valid score: {', '.join(lost)}.")
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
        if name in sample.not_applicable:
            continue
        if value is None:
            badges.append((f"{BADGES.get(name, label(name))}: no valid score", "none"))
        elif rates[name]:
            badges.append((f"{BADGES.get(name, label(name))}: {'yes' if value else 'no'}", "good" if value else "bad"))
        else:
            badges.append((f"{label(name)} {value:.2f}" if abs(value) < 1e6 else f"{label(name)} {value:.2e}", "plain"))
    badges.append((f"{system.language.length(sample.response)} {system.language.unit}", "plain"))
    if not sample.finished:
        badges.append(("cut off", "bad"))
    return {"system": system.name, "text": sample.response, "badges": badges}


def _numbers(report: Report, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of report.json: only finite numbers and text."""
    systems, changes = report.systems, {}
    for a, b in itertools.combinations(systems, 2):
        shared = [m for m in (*a.score_names, *a.plain) if m in PLAIN or m in b.score_names]
        changes[f"{b.name} - {a.name}"] = {m: asdict(difference(a, b, m, report.seed)) for m in shared}
    return {
        "title": report.title,
        "headline": content["headline"],
        "samples": content["n"],
        "rows": {name: {m: asdict(f) for m, f in row.items()} for name, row in content["figures"].items()},
        "own_signals": {c.name: list(c.own) for c in report.candidates},
        "differences": changes,
        "wins": [asdict(w) for w in report.wins],
        "flags": [{"system": name, **asdict(flag)} for name, flags in content["flags"].items() for flag in flags],
        "tables": [{"title": t.title, "columns": list(t.columns), "rows": rows} for t, rows in content["tables"]],
        "facts": content["facts"],
        "settings": {name: list(values) for name, values in report.settings.items()},
        "notes": content["notes"],
    }


def _environment(html: bool) -> Any:
    """Templates that escape every value and mark control characters, since texts of models are data."""
    import jinja2

    options = {
        "loader": jinja2.PackageLoader("rlaif_jax.evaluation", "templates"),
        "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True,
    }  # fmt: skip
    if not html:
        return jinja2.Environment(autoescape=False, finalize=escape_markdown, **options)
    clean = lambda value: printable(value) if type(value) is str else value  # noqa: E731 - Markup is escaped already
    environment = jinja2.Environment(autoescape=True, finalize=clean, **options)
    environment.filters["data_uri"] = _data_uri
    return environment


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")
