"""Completions to read while RL runs."""

from __future__ import annotations

import json
from typing import Any

from rlaif_jax import state_files
from rlaif_jax.errors import printable
from rlaif_jax.rewards.base import RewardResult, Sample
from rlaif_jax.runs.folder import Run
from rlaif_jax.sharding import is_first


class SampleTable:
    """Every few steps, a few completions with their rewards: in the stage's samples.jsonl and on the terminal."""

    def __init__(self, x: Run, stage: str, rows: int = 8):
        self._x, self._stage, self._rows, self._seen = x, stage, rows, False

    def show(self, step: int, samples: list[Sample], result: RewardResult) -> None:
        """Appends the step's first completions; process 0 alone does."""
        if not is_first():
            return
        rows = [
            {"step": step, "prompt": e.prompt, "response": e.response, "finished": e.finished,
             "reward": round(float(v), 4) if ok else None}
            for e, v, ok in list(zip(samples, result.values, result.valid, strict=True))[: self._rows]
        ]  # fmt: skip
        self._append(step, rows)
        if self._x.console.is_terminal:
            self._x.console.print(_sample_rows(step, rows))

    def _append(self, step: int, rows: list[dict]) -> None:
        path = self._x.folder(self._stage) / "samples.jsonl"
        if not self._seen and path.exists():  # rows of a run that died after its last checkpoint come again
            state_files.write_rows(path, (row for row in state_files.read_rows(path) if row.get("step", step) < step))
        self._seen = True
        with state_files.writing(path), path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _sample_rows(step: int, rows: list[dict]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"samples at step {step}", show_lines=False)
    for column in ("reward", "prompt", "response"):
        table.add_column(column)
    for row in rows[:4]:
        table.add_row(str(row["reward"]), Text(printable(row["prompt"])), Text(printable(row["response"])))
    return table
