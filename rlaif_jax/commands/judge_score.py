"""`rlaif judge score FILE`: every (query, response) of a file, rated by the judge of a run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from rlaif_jax.data.records import SftExample
from rlaif_jax.data.sources import load
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.principles import read_rules
from rlaif_jax.feedback.verdicts import judge_verdicts
from rlaif_jax.run.folder import open_run
from rlaif_jax.run.models import RunModels

_CHUNK = 512


def run_score(args: argparse.Namespace, console: Console) -> None:
    """Writes the rows with "p_good" (null without verdict) and "reason" to `args.out` and prints a summary."""
    run = open_run(args.run, console=console)
    cfg, models = run.cfg.judge, RunModels(run)
    if cfg is None:
        raise UserError(f"the run {args.run} has no judge section in its config")
    out: Path = args.out or args.file.with_name(args.file.name + ".rated.jsonl")
    if out.exists():
        raise UserError(f"{out} exists already; name another file with --out, or move it away")
    rows = load(SftExample, args.file, columns=columns_of(args.file)).records
    principles = read_rules(args.principles) if args.principles else models.principles()
    judge = judge_verdicts(models.feedback, models.prompts, cfg.single_mode, cfg.votes, cfg.temperature)
    values = []
    with out.open("w", encoding="utf-8") as file:
        for start in track(range(0, len(rows), _CHUNK), "judge score", console=console, transient=True):
            part = rows[start : start + _CHUNK]
            verdicts = judge(principles, [(r.prompt, r.response) for r in part])
            reasons = verdicts.reasons or [""] * len(part)
            for row, p, reason in zip(part, verdicts.p_good.tolist(), reasons, strict=True):
                known = None if np.isnan(p) else round(p, 4)
                line = {"prompt": row.prompt, "response": row.response, "p_good": known, "reason": reason}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                values.append(p)
    found = np.array(values)
    good = found[~np.isnan(found)]
    mean = f"{(good > 0.5).mean():.1%} good, mean P(Good) {good.mean():.3f}" if len(good) else "no verdict at all"
    console.print(f"{len(found)} answers, {len(found) - len(good)} without verdict, {mean}; written to {out}", soft_wrap=True)


def columns_of(path: Path) -> dict[str, str]:
    """The paper's files say "query" for the prompt."""
    head = path.open(encoding="utf-8", errors="replace").read(4096) if path.exists() else ""
    return {"prompt": "query"} if '"query"' in head and '"prompt"' not in head else {}
