"""The report of a run, from what the evaluation wrote."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from rlaif_jax.evaluation import feedback_tables
from rlaif_jax.evaluation.compare import GradedSample, System
from rlaif_jax.evaluation.hacking import Flag, hack_flags
from rlaif_jax.evaluation.headline import headline
from rlaif_jax.evaluation.plots import Curve
from rlaif_jax.evaluation.report import Report, Table, console_table, write_report
from rlaif_jax.feedback.curate import read_items
from rlaif_jax.models.model_config import parameter_count
from rlaif_jax.run.folder import Run
from rlaif_jax.run.models import RunModels
from rlaif_jax.sharding.hosts import on_first
from rlaif_jax.stages.evaluate import SYSTEMS, systems_of
from rlaif_jax.trainers.metrics_log import read_metrics


def load_systems(folder: Path, names: Sequence[str]) -> tuple[System, ...]:
    """The systems that `run_evaluate` wrote."""
    systems = []
    for name in names:
        rows = json.loads((folder / f"samples_{name}.json").read_text(encoding="utf-8"))
        systems.append(System(name, SYSTEMS[name], tuple(GradedSample(**row) for row in rows)))
    return tuple(systems)


def run_report(x: Run) -> Mapping[str, Any]:
    """Writes report.html, report.md and report.json and prints the comparison; process 0 alone does."""
    return on_first(partial(_report, x), "report")


def _report(x: Run) -> Mapping[str, Any]:
    x.require("evaluate")
    systems = load_systems(x.folder("evaluate"), systems_of(x.cfg))
    trained = [s for s in ("sft", "feedback", "reward", "grader", "dpo", "rl", "rl_judge") if x.is_done(s)]
    curves = {s: _curves(x.folder(s) / "metrics.jsonl") for s in trained}
    tables = [*_grader_table(x)]
    if x.is_done("judge"):
        tables += feedback_tables.judge_tables(x.folder("judge"))
        curves["judge"] = feedback_tables.judge_curves(x.folder("judge"))
    if x.is_done("curate") and (debate := feedback_tables.debate_table(read_items(x.folder("curate") / "items.jsonl"))):
        tables.append(debate)
    notes, flags = _judge_arm(systems)
    names = ", ".join(s.name for s in systems)
    report = Report(
        f"{x.cfg.name}: {names} on the same prompts", systems, curves, tuple(tables), _facts(x, trained), notes,
        baseline_flags=flags, reference=_reference(systems).name,
    )  # fmt: skip
    paths = write_report(x.folder("report"), report)
    x.console.print(console_table(systems))
    x.console.print(f"report: {paths.html}", soft_wrap=True)
    return {"html": str(paths.html)}


def _grader_table(x: Run) -> list[Table]:
    quality = json.loads((x.folder("evaluate") / "graders.json").read_text(encoding="utf-8"))
    if not quality:
        return []
    columns = ("grader", *next(iter(quality.values())))
    rows = tuple((name, *(f"{v:.3f}" if isinstance(v, float) else str(v) for v in q.values())) for name, q in quality.items())
    return [Table("Graders against held-out labels", columns, rows)]


def _judge_arm(systems: Sequence[System]) -> tuple[tuple[str, ...], tuple[Flag, ...]]:
    """The headline and the checks of the judge's arm, which stand below those of the reward model's."""
    known = {s.name: s for s in systems}
    if "rl_judge" not in known:
        return (), ()
    pair = _reference(systems), known["rl_judge"]
    flags = hack_flags(*pair)
    named = tuple(dataclasses.replace(f, name=f"rl_judge: {f.name}") for f in flags)
    return (headline(systems, pair, flags),), named


def _reference(systems: Sequence[System]) -> System:
    """What RL started from: the SFT policy, or the base where there was no SFT."""
    known = {s.name: s for s in systems}
    return known.get("sft") or known["base"]


def _curves(path: Path) -> tuple[Curve, ...]:
    rows = read_metrics(path)
    wanted = ("loss", "eval/loss", "accuracy", "eval/accuracy", "reward", "eval/reward", "kl", "entropy", "length_tokens")
    curves = []
    for name in wanted:
        points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
        if points:
            curves.append(Curve(name, tuple(p[0] for p in points), tuple(p[1] for p in points)))
    return tuple(curves)


def _facts(x: Run, trained: Sequence[str]) -> dict[str, str]:
    models = RunModels(x)
    also = [s for s in ("curate", "judge") if x.is_done(s)]
    seconds = {s: x.facts(s)["seconds"] for s in ("tokenizer", *trained, *also, "evaluate")}
    return {
        "policy": f"{parameter_count(models.config):,} parameters, {models.config.layers} layers",
        "seed": str(x.cfg.seed),
        "mesh": str(dict(x.place.mesh.shape)),
        "sampling in the evaluation": str(x.cfg.evaluation.sampling),
        "seconds per stage": ", ".join(f"{k} {v:.0f}" for k, v in seconds.items()),
        "software": f"jax {jax.__version__}, Python {platform.python_version()}, {jax.devices()[0].platform}",
    }
