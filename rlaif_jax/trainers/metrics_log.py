"""Writes metrics to metrics.jsonl, to TensorBoard and, if configured, to W&B."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

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
        from tensorboardX import SummaryWriter

        self.path, self._silent = folder / "metrics.jsonl", jax.process_index() > 0
        if self._silent:
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(self.path) if row["step"] <= resume_step]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        self.path.write_text(text, encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)
        self._wandb = _start_wandb(wandb_project, name, folder)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the metrics of one step. A value that is not finite is null in metrics.jsonl."""
        if self._silent:
            return
        row = {k: (float(v) if v == v and abs(v) != float("inf") else None) for k, v in values.items()}
        row |= {_OLD_NAMES[k]: v for k, v in row.items() if k in _OLD_NAMES}
        self._file.write(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n")
        self._file.flush()
        for name, value in row.items():
            if value is not None:
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(row, step=step)

    def close(self) -> None:
        """Flushes everything."""
        if self._silent:
            return
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _start_wandb(project: str, name: str, folder: Path) -> Any:
    if not project:
        return None
    try:
        import wandb
    except ImportError as error:
        from rlaif_jax.errors import UserError

        raise UserError("logging.wandb_project is set, but wandb is not installed: pip install wandb") from error
    return wandb.init(project=project, name=name, dir=str(folder), resume="allow")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl. An incomplete last line, left by a killed process, is skipped."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
