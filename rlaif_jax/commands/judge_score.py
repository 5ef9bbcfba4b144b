"""`rlaif judge score FILE`: scores every (query, response) of a file with the judge of a run. It can be interrupted and resumed."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from rlaif_jax.commands.answer_file import resume
from rlaif_jax.data.records import RecordError, SftExample, from_row
from rlaif_jax.data.sources import Loaded, load, read_rows
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.llm import Failure, worst
from rlaif_jax.feedback.principles import read_rules
from rlaif_jax.feedback.verdicts import Judge, judge_verdicts
from rlaif_jax.runs.folder import Run
from rlaif_jax.runs.llms import RunLlms
from rlaif_jax.runs.models import RunModels

_CHUNK = 512


def score_file(
    run: Run, path: Path, out: Path | None = None, *, principles: str = "", columns: Mapping[str, str] | None = None,
    skip_bad_rows: bool = False, import_code: bool = False, console: Console,
) -> Path:  # fmt: skip
    """Writes the rows of a file with "p_good" (null if invalid) and "reason", and prints a summary. Returns the new file.

    Until every row is judged, the file is called OUT.part; the same command goes on with it. UserError if the judge answers no row,
    or not all of them.

    `out`: default PATH.rated.jsonl; it must not exist. `principles`: a file to use instead of the run's best principles. `columns`,
    `skip_bad_rows`: see `read_answers`. `import_code`: import the user's functions that the config names as text.
    """
    cfg, run = run.cfg.judge, dataclasses.replace(run, imports_functions=run.imports_functions or import_code)
    if cfg is None:
        raise UserError(f"the run {run.out} has no judge section in its config")
    llms, out = RunLlms(run, RunModels(run), "judge_score"), out or path.with_name(path.name + ".rated.jsonl")
    if out.exists():
        raise UserError(f"{out} exists already; choose another file with --out, or move it away")
    loaded = read_answers(path, columns or {}, skip_bad_rows)
    if loaded.skipped:
        console.print(f"{path}: {loaded.summary()}", style="yellow", markup=False, soft_wrap=True)
    rules = read_rules(principles) if principles else llms.principles()
    judge = judge_verdicts(llms.agent, cfg.single_mode, cfg.votes, cfg.temperature)
    settings = {
        "rows": _hash([(r.prompt, r.response, r.system) for r in loaded.records]), "principles": _hash(list(rules)),
        "judge": llms.feedback.name, "prompts": llms.prompts.hash, "mode": [cfg.single_mode, cfg.votes, cfg.temperature],
    }  # fmt: skip
    lines = _judge(judge, rules, loaded.records, _Part(out, settings), console)
    found = np.array([np.nan if line["p_good"] is None else line["p_good"] for line in lines])
    good = found[~np.isnan(found)]
    mean = f"{(good > 0.5).mean():.1%} good, mean P(Good) {good.mean():.3f}"
    text = f"{len(found)} answers, {len(found) - len(good)} invalid verdicts, {mean}; written to {out}"
    console.print(text, soft_wrap=True, markup=False)
    console.print(f"feedback model, all of this run's `judge score`: {llms.ledger.total}", soft_wrap=True, markup=False)
    return out


def read_answers(path: Path, columns: Mapping[str, str], skip_bad_rows: bool) -> Loaded:
    """The (prompt, response) rows of a file: a row for each of the `responses` that `rlaif generate --file` wrote.

    `columns`: field -> column of the file. `skip_bad_rows`: leave out rows that cannot be read; else they are an error.
    """
    first = next((raw for _, raw in read_rows(path) if isinstance(raw, Mapping)), {})
    if isinstance(first.get("responses"), list) and not columns:
        return _generated(path, skip_bad_rows)
    mode = "skip" if skip_bad_rows else "raise"
    return load(SftExample, path, columns=columns, on_error=mode, single=True)


def _generated(path: Path, skip_bad_rows: bool) -> Loaded:
    """The answers in a file of `rlaif generate`; a prompt that has an error instead of answers is skipped."""
    records, skipped = [], []
    for where, raw in read_rows(path):
        try:
            if isinstance(raw, RecordError):
                raise raw
            if isinstance(raw, Mapping) and raw.get("error"):
                skipped.append(f"{where}: {raw['error']}")
                continue
            texts = raw.get("responses") if isinstance(raw, Mapping) else None
            if not isinstance(texts, list):
                raise RecordError(f"{where}: expected a list of responses")
            rest = {k: v for k, v in raw.items() if k in ("prompt", "system")}
            records += [from_row(SftExample, {**rest, "response": text}, where) for text in texts]
        except RecordError as error:
            if not skip_bad_rows:
                raise
            skipped.append(str(error))
    if not records:
        raise UserError(f"{path}: no usable answer" + (f"; first problem: {skipped[0]}" if skipped else ""))
    return Loaded(records, skipped)


class _Part:
    """The unfinished file: a line per judged row, with its number."""

    def __init__(self, out: Path, settings: dict[str, Any]):
        self.out, self.path = out, out.with_name(out.name + ".part")
        self._settings = self.path.with_name(self.path.name + ".settings.json")
        resume(self.path, settings)
        try:
            lines = [json.loads(line) for line in self.path.read_text(encoding="utf-8").split("\n") if line]
            self.lines = {int(line.pop("row")): line for line in lines}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{self.path} is damaged ({error}); move it away, stored replies are not paid again") from error

    def add(self, lines: Mapping[int, dict[str, Any]]) -> None:
        """Appends lines by row number."""
        self.lines |= lines
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"row": i, **line}, ensure_ascii=False) + "\n" for i, line in lines.items())

    def finish(self) -> list[dict[str, Any]]:
        """Writes the finished file and returns its lines."""
        lines = [self.lines[i] for i in sorted(self.lines)]
        whole = self.path.with_name(self.path.name + ".tmp")
        whole.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        whole.replace(self.out)
        self.remove()
        return lines

    def remove(self) -> None:
        """Deletes the unfinished file."""
        self.path.unlink()
        self._settings.unlink()


def _judge(judge: Judge, rules: Sequence[str], rows: Sequence[Any], part: _Part, console: Console) -> list[dict[str, Any]]:
    """The line of every row. UserError that names the cause if rows were left unanswered, or none has a verdict."""
    todo = [i for i in range(len(rows)) if i not in part.lines]
    causes: list[Failure | None] = []
    for start in track(range(0, len(todo), _CHUNK), "judge score", console=console, transient=True):
        numbers = todo[start : start + _CHUNK]
        verdicts = judge(rules, [(rows[i].prompt, rows[i].response, rows[i].system) for i in numbers])
        reasons, failures = (found or [None] * len(numbers) for found in (verdicts.reasons, verdicts.failures))
        lines = {}
        for i, p, reason, failure in zip(numbers, verdicts.p_good.tolist(), reasons, failures, strict=True):
            causes += [failure] if np.isnan(p) else []
            if np.isnan(p) and failure is not None and failure.unanswered:
                continue
            lines[i] = {"prompt": rows[i].prompt, "response": rows[i].response, "p_good": None if np.isnan(p) else round(p, 4)}
            lines[i] |= {"reason": reason or ""} | ({"problem": str(failure)} if np.isnan(p) and failure else {})
        part.add(lines)
        if not lines:
            break
    cause = f". The cause: {worst(causes)}" if worst(causes) else ""
    judged = sum(line["p_good"] is not None for line in part.lines.values())
    if len(part.lines) < len(rows):
        done = f"{len(part.lines)} of {len(rows)} answers are judged, in {part.path}"
        raise UserError(f"{done}{cause}. Start the same command again to go on")
    if not judged:
        part.remove()
        raise UserError(f"none of {len(rows)} answers got a verdict{cause}")
    return part.finish()


def _hash(value: Any) -> int:
    return zlib.crc32(json.dumps(value).encode())
