"""The report of one run: a self-contained HTML page, a Markdown table, and the same figures as JSON."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rlaif_jax.evaluation.compare import (
    Check, Figure, System, check_same_prompts, difference, figures, hacking_checks, intervals_apart,
)  # fmt: skip

LABELS = {
    "excellent": "gold excellence rate", "compliance": "constraint met", "reward": "mean reward",
    "grader": "excellence rate by the independent grader", "length_chars": "length (characters)",
    "length_tokens": "length (tokens)", "finished": "answers that end", "repetition": "answers that repeat themselves",
    "distinct_1": "distinct-1", "distinct_2": "distinct-2", "unique": "unique answers",
}  # fmt: skip
PERCENT = {"excellent", "compliance", "grader", "finished", "repetition", "unique"}


@dataclasses.dataclass(frozen=True)
class Curve:
    """One metric over the steps of a stage."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """An extra table of text cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """What the page shows. `reference` and `candidate` name the systems that the headline compares."""

    title: str
    systems: tuple[System, ...]
    curves: Mapping[str, tuple[Curve, ...]]
    tables: tuple[Table, ...] = ()
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reference: str = "sft"
    candidate: str = "rl"


@dataclasses.dataclass(frozen=True)
class ReportPaths:
    """The files written."""

    html: Path
    markdown: Path
    json: Path


def show(metric: str, figure: Figure) -> str:
    """A figure with its interval, rates in percent."""
    if figure.value is None:
        return "no verdict"
    scale, unit, digits = (100, " %", 1) if metric in PERCENT else (1, "", 2 if abs(figure.value) < 10 else 1)
    value, low, high = (f"{v * scale:.{digits}f}" for v in (figure.value, figure.low, figure.high))
    lost = f", {figure.missing} without verdict" if figure.missing else ""
    return f"{value}{unit} [{low}, {high}]{lost}"


def headline(report: Report, rows: Mapping[str, Mapping[str, Figure]]) -> str:
    """The result in one sentence, whichever way it went."""
    old, new = report.reference, report.candidate
    metric = next((m for m in ("excellent", "grader", "reward") if m in rows[old]), None)
    if metric is None:
        return "No grader scored these answers."
    by_name = {s.name: s for s in report.systems}
    gap = difference(by_name[old], by_name[new], metric)
    a, b = rows[old][metric], rows[new][metric]
    verb = "raises" if gap.low > 0 else ("lowers" if gap.high < 0 else "does not clearly change")
    scale, unit = (100, " points") if metric in PERCENT else (1, "")
    apart = "the two intervals are apart" if intervals_apart(a, b) else "the two intervals overlap"
    return (
        f"{new.upper()} {verb} the {LABELS[metric]}: {show(metric, a)} for {old.upper()}, {show(metric, b)} for "
        f"{new.upper()}; paired difference {gap.value * scale:+.1f}{unit} "
        f"[{gap.low * scale:+.1f}, {gap.high * scale:+.1f}] on {gap.n} prompts; {apart}."
    )


def write_report(folder: Path, report: Report) -> ReportPaths:
    """Writes report.html, report.md and report.json, each whole or not at all."""
    check_same_prompts(report.systems)
    rows = {s.name: figures(s) for s in report.systems}
    by_name = {s.name: s for s in report.systems}
    checks = hacking_checks(by_name[report.reference], by_name[report.candidate])
    sentence = headline(report, rows)
    paths = ReportPaths(*(folder / f"report.{suffix}" for suffix in ("html", "md", "json")))
    folder.mkdir(parents=True, exist_ok=True)
    _write(paths.json, _as_json(report, rows, checks, sentence))
    _write(paths.markdown, _as_markdown(report, rows, checks, sentence))
    _write(paths.html, _as_html(report, rows, checks, sentence))
    return paths


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _as_json(report: Report, rows, checks: Sequence[Check], sentence: str) -> str:
    by_name = {s.name: s for s in report.systems}
    names = [m for m in ("excellent", "grader", "reward", "compliance") if m in rows[report.reference]]
    pair = f"{report.candidate} - {report.reference}"
    gaps = {m: difference(by_name[report.reference], by_name[report.candidate], m) for m in names}
    value: dict[str, Any] = {
        "headline": sentence,
        "rows": {name: {m: dataclasses.asdict(f) for m, f in figs.items()} for name, figs in rows.items()},
        "differences": {pair: {m: dataclasses.asdict(f) for m, f in gaps.items()}},
        "checks": [dataclasses.asdict(c) for c in checks],
        "tables": [dataclasses.asdict(t) for t in report.tables],
        "facts": dict(report.facts),
    }
    return json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)


def _cell(text: str) -> str:
    """Text of a model or a file inside a Markdown table."""
    for ch in "\\`|*_<>[]":
        text = text.replace(ch, "\\" + ch)
    return " ".join(text.split())


def _as_markdown(report: Report, rows, checks: Sequence[Check], sentence: str) -> str:
    metrics = list(rows[report.systems[0].name])
    lines = [f"# {report.title}", "", sentence, "", "| | " + " | ".join(rows) + " |", "|---" * (len(rows) + 1) + "|"]
    lines += [f"| {LABELS.get(m, m)} | " + " | ".join(show(m, r[m]) for r in rows.values()) + " |" for m in metrics]
    lines += ["", "| check | result |", "|---|---|"]
    lines += [f"| {c.name} | {'ok' if c.ok else 'SUSPECT'}: {_cell(c.detail)} |" for c in checks]
    for table in report.tables:
        lines += ["", f"## {table.title}", "", "| " + " | ".join(table.columns) + " |", "|---" * len(table.columns) + "|"]
        lines += ["| " + " | ".join(_cell(c) for c in row) + " |" for row in table.rows]
    lines += ["", "## Samples", "", "| prompt | " + " | ".join(rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for group in list(zip(*(s.samples for s in report.systems), strict=True))[:20]:
        lines.append(f"| {_cell(group[0].prompt)} | " + " | ".join(_cell(s.response) for s in group) + " |")
    return "\n".join([*lines, "", *(f"- {k}: {_cell(v)}" for k, v in report.facts.items()), ""])


def _as_html(report: Report, rows, checks: Sequence[Check], sentence: str) -> str:
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    source = resources.files("rlaif_jax.evaluation").joinpath("templates/report.html").read_text(encoding="utf-8")
    metrics = list(rows[report.systems[0].name])
    return environment.from_string(source).render(
        report=report, sentence=sentence, checks=checks,
        table=[(LABELS.get(m, m), [show(m, r[m]) for r in rows.values()]) for m in metrics],
        bars=_bar_plot(rows), curves={stage: _curve_plot(c) for stage, c in report.curves.items() if c},
        samples=list(zip(*(s.samples for s in report.systems), strict=True))[:24],
    )  # fmt: skip


def _svg(figure) -> str:
    """Inline SVG with its letters as paths, so that the page needs no font for them."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "rlaif"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _bar_plot(rows: Mapping[str, Mapping[str, Figure]]) -> str:
    from matplotlib.figure import Figure as Canvas

    metrics = [m for m in ("excellent", "grader", "compliance") if all(m in r for r in rows.values())]
    if not metrics:
        return ""
    canvas = Canvas(figsize=(2.6 * len(metrics) + 1, 2.6))
    for i, metric in enumerate(metrics, 1):
        axes = canvas.add_subplot(1, len(metrics), i)
        figs = [r[metric] for r in rows.values()]
        values = [100 * (f.value or 0.0) for f in figs]
        errors = [[100 * ((f.value or 0) - (f.low or 0)) for f in figs], [100 * ((f.high or 0) - (f.value or 0)) for f in figs]]
        axes.bar(list(rows), values, yerr=errors, capsize=4, color=["#b9bec7", "#7aa6d8", "#2f7d5b"][: len(rows)])
        axes.set_title(LABELS[metric], fontsize=9)
        axes.set_ylim(0, 100)
        axes.set_ylabel("%")
        axes.spines[["top", "right"]].set_visible(False)
    canvas.tight_layout()
    return _svg(canvas)


def _curve_plot(curves: Sequence[Curve]) -> str:
    """Small multiples, training and held-out of one metric together. All labels are ASCII: no CJK font is needed."""
    from matplotlib.figure import Figure as Canvas

    names = list(dict.fromkeys(c.name.removeprefix("eval/") for c in curves))
    canvas = Canvas(figsize=(2.6 * len(names), 2.2))
    for i, name in enumerate(names, 1):
        axes = canvas.add_subplot(1, len(names), i)
        for curve in curves:
            if curve.name.removeprefix("eval/") == name:
                held_out = curve.name.startswith("eval/")
                axes.plot(curve.steps, curve.values, "o-" if held_out else "-", label="held out" if held_out else "training",
                          markersize=3, linewidth=1.2)  # fmt: skip
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("step", fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=6, frameon=False)
    canvas.tight_layout()
    return _svg(canvas)
