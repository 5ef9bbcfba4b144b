"""Writes metrics to metrics.jsonl, to TensorBoard and, if configured, to W&B."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from rlaif_jax import state_files
from rlaif_jax.errors import UserError

# Names of version 0.1, which are also written for one more release, so that dashboards keep working.
_OLD_NAMES = {
    "frac_reward_zero_std": "no_signal_groups", "approx_kl": "kl_old", "rollout_mismatch": "sampler_gap",
    "clip_ratio/low": "clip_low", "clip_ratio/high": "clip_high", "reward_invalid": "reward_lost",
}  # fmt: skip


class MetricsWriter:
    """Appends to metrics.jsonl, to TensorBoard and, if a project is set, to W&B.

    After a restart from step s, lines of later steps, left by the interrupted run, are deleted first. With several processes,
    only process 0 writes; in other processes the methods do nothing.
    """

    def __init__(self, folder: Path, resume_step: int, wandb_project: str = "", name: str = ""):
        self.path, self._silent = folder / "metrics.jsonl", jax.process_index() > 0
        if self._silent:
            return
        folder.mkdir(parents=True, exist_ok=True)
        state_files.write_rows(self.path, (row for row in read_metrics(self.path) if row["step"] <= resume_step))
        with state_files.writing(self.path):
            self._file, self._board = self.path.open("a", encoding="utf-8"), _Board(folder / "tensorboard", resume_step + 1)
        self._wandb = _start_wandb(wandb_project, name, folder)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the metrics of one step. A value that is not finite is null in metrics.jsonl."""
        if self._silent:
            return
        row = {k: (float(v) if v == v and abs(v) != float("inf") else None) for k, v in values.items()}
        row |= {_OLD_NAMES[k]: v for k, v in row.items() if k in _OLD_NAMES}
        with state_files.writing(self.path):
            self._file.write(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n")
            self._file.flush()
            self._board.write(step, {name: value for name, value in row.items() if value is not None})
        if self._wandb is not None:
            self._wandb.log(row, step=step)

    def close(self) -> None:
        """Flushes everything."""
        if self._silent:
            return
        with state_files.writing(self.path):
            self._file.close()
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


class _Board:
    """TensorBoard's file of events, written at once: the library's writer is a thread, which a full disk ends unnoticed."""

    def __init__(self, folder: Path, first_step: int):
        """TensorBoard forgets what earlier files of the folder have from `first_step` on."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._scalar, self._events = Event, scalar, EventsWriter(str(folder / "events"))
        self._events.write_event(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._events.write_event(self._event(step=step, wall_time=time.time(), summary=self._scalar(name, value)))
        self._events.flush()

    def close(self) -> None:
        self._events.close()


def _start_wandb(project: str, name: str, folder: Path) -> Any:
    if not project:
        return None
    try:
        import wandb
    except ImportError as error:
        raise UserError("logging.wandb_project is set, but wandb is not installed: pip install wandb") from error
    return wandb.init(project=project, name=name, dir=str(folder), resume="allow")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl. An incomplete last line, left by a killed process, is skipped. UserError for any other line
    that is not an object with a step."""
    rows = state_files.read_rows(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("step"), int):
            raise UserError(f"{path}:{number} is damaged: it has no step; mend or delete the line")
    return rows
