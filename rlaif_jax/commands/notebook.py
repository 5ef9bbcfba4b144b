"""For notebooks: runs stages with live plots, keeps results on Google Drive, and finds an API key without showing it."""

from __future__ import annotations

import dataclasses
import io
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif_jax.errors import UserError
from rlaif_jax.runs.folder import Run
from rlaif_jax.stages import pipeline
from rlaif_jax.trainers.metrics_log import read_metrics

_DRIVE = Path("/content/drive")
_SECONDS = 2.0  # between two drawings


def results_folder(name: str, keep_on_drive: bool = True) -> Path:
    """Where a notebook keeps a run: on Google Drive in Colab, which outlives the machine, else runs/NAME.

    Colab asks for permission to mount the drive; if it is refused, results stay on the machine and a line says so.
    """
    here = Path("runs") / name
    try:
        from google.colab import drive
    except ImportError:
        return here
    if not keep_on_drive:
        return here
    try:
        drive.mount(str(_DRIVE))
    except Exception as error:  # Colab raises ValueError, MessageError and others
        print(f"Google Drive is not mounted ({error}): the results in {here} end with this machine")
        return here
    return _DRIVE / "MyDrive" / "rlaif_jax_runs" / name


def find_key(variable: str = "OPENAI_API_KEY") -> bool:
    """Whether an API key is in the environment; in Colab, one among the notebook's secrets is put there first."""
    if not os.environ.get(variable):
        try:
            from google.colab import userdata

            os.environ[variable] = userdata.get(variable) or ""
        except Exception:  # not in Colab, no such secret, or no access to it
            return False
    return bool(os.environ.get(variable))


def watch(x: Run, stages: str | Sequence[str], metrics: Sequence[str] = ("loss",)) -> None:
    """Runs the stages of `x` and shows one plot per metric of each stage that trains, drawn anew every few seconds.

    Needs IPython and matplotlib. Stop works as everywhere: the stage saves, and the next call resumes it. The plots of a stage
    that was done before are drawn from its metrics.jsonl.
    """
    try:
        import IPython.display  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("watch draws in a notebook: pip install matplotlib ipython, or call run(...) instead") from error
    for stage in [stages] if isinstance(stages, str) else stages:
        plot = _Plot(stage, metrics)
        try:
            pipeline.run(dataclasses.replace(x, on_log=plot.note), [stage])
        finally:
            plot.draw(read_metrics(x.folder(stage) / "metrics.jsonl"))


class _Plot:
    """The curves of one stage in one output of the cell."""

    def __init__(self, stage: str, metrics: Sequence[str]):
        self._stage, self._metrics, self._handle, self._drawn = stage, metrics, None, 0.0
        self._rows: list[Mapping[str, Any]] = []

    def note(self, stage: str, step: int, means: Mapping[str, float]) -> None:
        """Takes a log line, and draws if the last drawing is old enough."""
        self._rows.append({"step": step, **means})
        if time.monotonic() - self._drawn > _SECONDS:
            self.draw(self._rows)

    def draw(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Draws the metrics that the rows have, over the last drawing."""
        from IPython.display import Image, display

        names = [name for name in self._metrics if any(row.get(name) is not None for row in rows)]
        if not names:
            return
        image = Image(_png(self._stage, names, rows))
        if self._handle is None:
            self._handle = display(image, display_id=True)
        else:
            self._handle.update(image)
        self._drawn = time.monotonic()


def _png(stage: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(names), 2.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        axes.plot([step for step, _ in points], [value for _, value in points])
        axes.set_title(f"{stage}: {name}")
        axes.set_xlabel("step")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    return file.getvalue()
