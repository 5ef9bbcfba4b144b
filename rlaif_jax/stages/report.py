"""The report of a run, from what the evaluation wrote: report.html, report.md and report.json."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from rlaif_jax.config.stages import CURATE, DPO, EVALUATE, PRINCIPLES, SFT, Stage, stages_of
from rlaif_jax.evaluation import feedback_tables
from rlaif_jax.evaluation.compare import GradedSample, System
from rlaif_jax.evaluation.hacking import Flag, hack_flags
from rlaif_jax.evaluation.headline import headline
from rlaif_jax.evaluation.plots import Curve
from rlaif_jax.evaluation.report import Report, Table, console_table, write_report
from rlaif_jax.feedback.curated_items import read_items
from rlaif_jax.language import Language, get_language
from rlaif_jax.models.model_config import parameter_count
from rlaif_jax.runs.folder import Run
from rlaif_jax.runs.models import BASE, RunModels
from rlaif_jax.sharding.hosts import on_first
from rlaif_jax.stages.evaluate import systems_of
from rlaif_jax.trainers.metrics_log import read_metrics


def run(x: Run, stage: Stage) -> Mapping[str, Any]:
    """Writes the report and prints the comparison; process 0 alone does."""
    return on_first(partial(_report, x, stage), "report")


def load_systems(folder: Path, titles: Mapping[str, str], language: Language | None = None) -> tuple[System, ...]:
    """The systems (name -> title) that the evaluation wrote; language None: by the script of the prompts."""
    systems = []
    for name, title in titles.items():
        rows = json.loads((folder / f"samples_{name}.json").read_text(encoding="utf-8"))
        systems.append(System(name, title, tuple(GradedSample(**row) for row in rows), language))
    return tuple(systems)


def _report(x: Run, stage: Stage) -> Mapping[str, Any]:
    language = None if x.cfg.language == "auto" else get_language(x.cfg.language)
    systems = load_systems(x.folder(EVALUATE.name), systems_of(x.cfg), language)
    trained = [s.name for s in stages_of(x.cfg).values() if s.kind in ("train", "rl") and x.is_done(s.name)]
    curves = {name: _curves(x.folder(name) / "metrics.jsonl") for name in trained}
    tables = [*_grader_table(x)]
    if x.is_done(PRINCIPLES.name):
        tables += feedback_tables.judge_tables(x.folder(PRINCIPLES.name))
        curves[PRINCIPLES.name] = feedback_tables.judge_curves(x.folder(PRINCIPLES.name))
    if x.is_done(CURATE.name) and (debate := feedback_tables.debate_table(read_items(x.folder(CURATE.name) / "items.jsonl"))):
        tables.append(debate)
    first, *others = candidates(x)
    found = [_other_candidate(systems, name) for name in others]
    report = Report(
        f"{x.cfg.name}: {', '.join(s.name for s in systems)} on the same prompts", systems, curves, tuple(tables),
        _facts(x), tuple(note for note, _ in found), reference=_reference(systems, first).name, candidate=first,
        baseline_flags=tuple(flag for _, flags in found for flag in flags),
    )  # fmt: skip
    paths = write_report(x.folder(stage.name), report)
    x.console.print(console_table(systems))
    x.console.print(f"report: {paths.html}", soft_wrap=True, markup=False)
    return {"html": str(paths.html)}


def candidates(x: Run) -> list[str]:
    """The systems that the report compares with what RL started from: the arms, or the policy that was trained last."""
    arms = list(x.cfg.all_arms())
    return arms or [name for name in (DPO.name, SFT.name, BASE) if name in systems_of(x.cfg)][:1]


def _other_candidate(systems: Sequence[System], name: str) -> tuple[str, tuple[Flag, ...]]:
    """The headline and the checks of a further arm, which the report shows below those of the first."""
    candidate = next(s for s in systems if s.name == name)
    pair = _reference(systems, name), candidate
    flags = hack_flags(*pair)
    return headline(systems, pair, flags), tuple(dataclasses.replace(f, name=f"{name}: {f.name}") for f in flags)


def _reference(systems: Sequence[System], candidate: str) -> System:
    """What a candidate started from: the SFT policy, or the base where there was no SFT."""
    known = {s.name: s for s in systems if s.name != candidate}
    return known.get(SFT.name) or known.get(BASE) or systems[0]


def _grader_table(x: Run) -> list[Table]:
    quality = json.loads((x.folder(EVALUATE.name) / "graders.json").read_text(encoding="utf-8"))
    if not quality:
        return []
    columns = ("grader", *next(iter(quality.values())))
    rows = tuple((name, *(f"{v:.3f}" if isinstance(v, float) else str(v) for v in q.values())) for name, q in quality.items())
    return [Table("Graders against held-out labels", columns, rows)]


def _curves(path: Path) -> tuple[Curve, ...]:
    rows = read_metrics(path)
    wanted = ("loss", "eval/loss", "accuracy", "eval/accuracy", "reward", "eval/reward", "kl", "entropy", "length_tokens")
    curves = []
    for name in wanted:
        points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
        if points:
            curves.append(Curve(name, tuple(p[0] for p in points), tuple(p[1] for p in points)))
    return tuple(curves)


def _facts(x: Run) -> dict[str, str]:
    models = RunModels(x)
    seconds = {name: x.facts(name)["seconds"] for name in stages_of(x.cfg) if x.is_done(name)}
    return {
        "policy": f"{parameter_count(models.config):,} parameters, {models.config.layers} layers",
        "seed": str(x.cfg.seed),
        "mesh": str(dict(x.place.mesh.shape)),
        "sampling in the evaluation": str(x.cfg.evaluation.sampling),
        "seconds per stage": ", ".join(f"{k} {v:.0f}" for k, v in seconds.items()),
        "software": f"jax {jax.__version__}, Python {platform.python_version()}, {jax.devices()[0].platform}",
    }
