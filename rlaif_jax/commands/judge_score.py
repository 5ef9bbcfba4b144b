"""`rlaif judge score FILE`: scores every (query, response) of a file with the judge of a run."""

from __future__ import annotations

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
from rlaif_jax.runs.folder import Run
from rlaif_jax.runs.llms import RunLlms
from rlaif_jax.runs.models import RunModels

_CHUNK = 512


def score_file(run: Run, path: Path, out: Path | None = None, *, principles: str = "", console: Console) -> Path:
    """Writes the rows of a file with "p_good" (null if invalid) and "reason", and prints a summary. Returns the new file.

    `out`: default PATH.rated.jsonl; it must not exist. `principles`: a file to use instead of the run's best principles.
    """
    cfg = run.cfg.judge
    if cfg is None:
        raise UserError(f"the run {run.out} has no judge section in its config")
    llms, out = RunLlms(run, RunModels(run)), out or path.with_name(path.name + ".rated.jsonl")
    if out.exists():
        raise UserError(f"{out} exists already; choose another file with --out, or move it away")
    rows = load(SftExample, path).records
    rules = read_rules(principles) if principles else llms.principles()
    judge = judge_verdicts(llms.agent, cfg.single_mode, cfg.votes, cfg.temperature)
    values = []
    with out.open("w", encoding="utf-8") as file:
        for start in track(range(0, len(rows), _CHUNK), "judge score", console=console, transient=True):
            part = rows[start : start + _CHUNK]
            verdicts = judge(rules, [(r.prompt, r.response) for r in part])
            reasons = verdicts.reasons or [""] * len(part)
            for row, p, reason in zip(part, verdicts.p_good.tolist(), reasons, strict=True):
                known = None if np.isnan(p) else round(p, 4)
                line = {"prompt": row.prompt, "response": row.response, "p_good": known, "reason": reason}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                values.append(p)
    found = np.array(values)
    good = found[~np.isnan(found)]
    mean = f"{(good > 0.5).mean():.1%} good, mean P(Good) {good.mean():.3f}" if len(good) else "all verdicts invalid"
    text = f"{len(found)} answers, {len(found) - len(good)} invalid verdicts, {mean}; written to {out}"
    console.print(text, soft_wrap=True, markup=False)
    return out


