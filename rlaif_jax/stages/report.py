"""The report of a run, from what the evaluation wrote: HTML, Markdown, JSON, CSV, LaTeX and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.sections import ArmConfig
from rlaif_jax.config.stages import CURATE, DPO, EVALUATE, PRINCIPLES, SFT, Stage, stages_of
from rlaif_jax.evaluation import feedback_tables
from rlaif_jax.evaluation.compare import GradedSample, System, figures
from rlaif_jax.evaluation.console import console_lines, console_table
from rlaif_jax.evaluation.hacking import Candidate, has_headroom
from rlaif_jax.evaluation.plots import Curve
from rlaif_jax.evaluation.report import Report, Table, write_report
from rlaif_jax.evaluation.scores import rate_figure
from rlaif_jax.evaluation.text import cell, label
from rlaif_jax.evaluation.wins import Wins, score_wins
from rlaif_jax.feedback.curated_items import read_items
from rlaif_jax.language import Language, get_language
from rlaif_jax.runs.folder import Run
from rlaif_jax.runs.grading import STARTS_AS_JUDGE, own_reward, zero_points
from rlaif_jax.runs.models import BASE
from rlaif_jax.sharding.hosts import on_first
from rlaif_jax.stages.about import changed_settings, plain, run_facts
from rlaif_jax.stages.costs import cost_table
from rlaif_jax.stages.evaluate import start_of, systems_of
from rlaif_jax.trainers.metrics_log import read_metrics


def run(x: Run, stage: Stage) -> Mapping[str, Any]:
    """Writes the report and prints the comparison; process 0 alone does."""
    return on_first(partial(_report, x, stage), "report")


def load_systems(
    folder: Path, titles: Mapping[str, str], language: Language | None = None, zero: Mapping[str, float] | None = None
) -> tuple[System, ...]:
    """The systems (name -> title) that the evaluation wrote; language None: by the script of the prompts.

    In evaluations of earlier versions, "compliance" without a number does not apply, and a verdict of a grader that has no zero
    point (`zero`, None: all have one) is left out.
    """
    systems = []
    for name, title in titles.items():
        rows = json.loads((folder / f"samples_{name}.json").read_text(encoding="utf-8"))
        for row in rows:
            if "not_applicable" not in row:
                row["not_applicable"] = [s for s in ("compliance",) if s in row["scores"] and row["scores"][s] is None]
                if zero is not None and "grader" not in zero:
                    row["scores"].pop("grader", None)
        systems.append(System(name, title, tuple(GradedSample(**row) for row in rows), language))
    return tuple(systems)


def _report(x: Run, stage: Stage) -> Mapping[str, Any]:
    language = None if x.cfg.language == "auto" else get_language(x.cfg.language)
    folder = x.folder(EVALUATE.name)
    systems = load_systems(folder, systems_of(x.cfg), language, zero_points(x.cfg))
    trained = [s.name for s in stages_of(x.cfg).values() if s.kind in ("train", "rl") and x.is_done(s.name)]
    curves = {name: _curves(x.folder(name) / "metrics.jsonl") for name in trained}
    facts_of_data, wins = _read(folder / "independence.json", {}), _saved_wins(folder)
    found = candidates(x.cfg, wins, facts_of_data.get("grader", {}).get("problem", ""))
    report = Report(
        f"{x.cfg.name}: {', '.join(s.name for s in systems)} on the same prompts", systems, tuple(found), start_of(x.cfg), wins,
        curves, (), run_facts(x), changed_settings(x.cfg),
    )  # fmt: skip
    costs = cost_table(x, systems, found, facts_of_data.get("arms", {}))
    tables = [t for t in (_ai_graders(systems), costs, _grader_table(x)) if t is not None]
    if x.is_done(PRINCIPLES.name):
        tables += feedback_tables.judge_tables(x.folder(PRINCIPLES.name))
        curves[PRINCIPLES.name] = feedback_tables.judge_curves(x.folder(PRINCIPLES.name))
    if x.is_done(CURATE.name) and (debate := feedback_tables.debate_table(read_items(x.folder(CURATE.name) / "items.jsonl"))):
        tables.append(debate)
    notes = _notes(x.cfg, systems, found, facts_of_data)
    pairs = [pair for pair in report.pairs() if pair[0].name != BASE]
    report = replace(report, wins=(*wins, *score_wins(pairs, wins)), tables=tuple(tables), notes=notes)
    paths = write_report(x.folder(stage.name), report)
    x.console.print(console_table(systems, candidates=found))
    for line in console_lines(report):
        x.console.print(line, markup=False, highlight=False)
    x.console.print(f"report: {paths.html}", soft_wrap=True, markup=False, highlight=False)
    return {"html": str(paths.html)}


def candidates(cfg: RunConfig, wins: Sequence[Wins] = (), problem: str = "") -> list[Candidate]:
    """The systems that the report is about: the arms with their own signals, or the policy that was trained last.

    `problem`: why the grader is no independent evidence, "" where it is.
    """
    start = start_of(cfg)
    names = list(cfg.all_arms()) or [name for name in (DPO.name, SFT.name, BASE) if name in systems_of(cfg)][:1]
    found = []
    for name in names:
        reference = start if name != start else BASE
        arm = cfg.all_arms().get(name)
        bare = Candidate(name, reference, () if arm is None else own_signals(name, arm), _dependent(arm, problem))
        between = {w.judge: w.share for w in wins if (w.a, w.b, w.by) == (name, reference, "judge") and bare.is_independent(w.by)}
        found.append(Candidate(name, reference, bare.own, bare.dependent, between))
    return found


def own_signals(name: str, arm: ArmConfig) -> tuple[str, ...]:
    """The scores of the evaluation that an arm was trained on."""
    scores = {"reward_model": "reward"}
    return tuple(scores.get(source, source) for source in arm.sources) or (own_reward(name),)


def _dependent(arm: ArmConfig | None, problem: str) -> tuple[str, ...]:
    """Scores that are no independent evidence about an arm."""
    found = ["grader"] if problem == STARTS_AS_JUDGE else []
    if arm is not None and (arm.rules.constraint_weight or arm.rules.veto_constraint):
        found.append("compliance")  # the rule reads the same constraints
    return tuple(found)


def _read(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def _saved_wins(folder: Path) -> tuple[Wins, ...]:
    return tuple(
        Wins(w["a"], w["b"], w["by"], rate_figure(w["wins"])) for w in _read(folder / "wins.json", []) if w["wins"]
    )  # fmt: skip


def _ai_graders(systems: Sequence[System]) -> Table | None:
    """Every system under both AI graders, as in the reference paper."""
    names = ("debate", "judge")
    if not all(name in s.score_names for s in systems for name in names):
        return None
    rows = tuple((s.name, *(cell(figures(s)[name], True) for name in names)) for s in systems)
    note = (
        "Share of answers that each AI grader finds good, with 95 % intervals. The arm that was trained on a grader's verdict has "
        "an advantage there."
    )
    return Table("Both AI graders", ("system", "multi-agent debate", "judge with principles"), rows, note)


def _notes(cfg: RunConfig, systems: Sequence[System], found: Sequence[Candidate], facts: Mapping[str, Any]) -> tuple[str, ...]:
    notes, grader, start = [], facts.get("grader", {}), next(s for s in systems if s.name == start_of(cfg))
    if grader.get("problem"):
        notes.append(f"Grader: not shown to be independent: {grader['problem']}.")
    elif grader:
        parts = [
            f"{part['answers']} of its {grader['answers']:,} training answers and {part['prompts']} of its {grader['prompts']:,} "
            f"prompts are in the {part['rows']:,} rows of the {name}" for name, part in grader["shared"].items()
        ]  # fmt: skip
        notes.append(f"Grader: independent of the arms. {'; '.join(parts) or 'No arm learns from data'}.")
    elif cfg.grader is not None:
        notes.append("Grader: this evaluation did not check whether it is independent; run the stage evaluate again.")
    for name in ("excellent", "grader", "debate", "judge"):
        if name in start.score_names and not has_headroom(start, name):
            notes.append(
                f"No headroom: {start.name} is at {cell(figures(start)[name], True)} by the {label(name)}, so it cannot show a "
                "gain. Look at the win rates."
            )
    if any("excellent" in s.score_names for s in systems) and cfg.embedded_feedback and cfg.feedback.source == "corpus":
        notes.append(
            "The gold scorer is not a reward. It is not independent of the AI feedback, though: it labelled the transcripts from "
            "which the embedded feedback model learned."
        )
    return tuple(notes)


def _grader_table(x: Run) -> Table:
    quality = _read(x.folder(EVALUATE.name) / "graders.json", {})
    title = "Graders against held-out labels"
    if not quality:
        why = "not checked: there is no held-out labelled answer, or each is also in a training file"
        return Table(title, ("grader", "agreement"), (("all", why),))
    keys = list(dict.fromkeys(key for q in quality.values() for key in q))
    words = {
        "n": "answers", "auc": "AUC", "balanced_accuracy": "balanced accuracy", "pairs": "right on pairs",
        "pairs of similar length": "right on pairs of similar length",
    }  # fmt: skip
    names = {"reward": "reward model"}
    rows = tuple((names.get(name, name), *(plain(q.get(key)) for key in keys)) for name, q in quality.items())
    note = feedback_tables.AGREEMENT + (
        " AUC: how often a good answer scores higher than a bad one; 50 % is chance. Right on pairs: how often the chosen answer "
        "of a held-out pair scores higher; in pairs of similar length, the length does not give it away. A score without a zero "
        "point is cut at its median."
    )
    return Table(title, ("grader", *(words.get(key, key) for key in keys)), rows, note)


def _curves(path: Path) -> tuple[Curve, ...]:
    rows = read_metrics(path)
    wanted = ("loss", "eval/loss", "accuracy", "eval/accuracy", "reward", "eval/reward", "kl", "entropy", "length_tokens")
    curves = []
    for name in wanted:
        points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
        if points:
            curves.append(Curve(name, tuple(p[0] for p in points), tuple(p[1] for p in points)))
    return tuple(curves)
