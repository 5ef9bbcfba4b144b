"""The folder of one run: its config, the stages that have finished, and the folder of each stage."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.stages import STAGES, Stage, needed_by
from rlaif_jax.config.values import from_dict, to_dict
from rlaif_jax.errors import UserError
from rlaif_jax.rewards.function import resolve
from rlaif_jax.runs.changes import changed_fields, refuse_outdated
from rlaif_jax.sharding import Placement, barrier, connect, is_first, make_mesh, on_first
from rlaif_jax.terminal import PlainConsole

VERSION = 2  # of run folders; a half-finished stage of another version is not resumed
_OLD_FOLDERS = {stage.name: stage.old_name for stage in STAGES if stage.old_name}


def write_json(path: Path, value: Any) -> None:
    """Writes JSON completely or not at all (temporary file, then rename). With several processes only process 0 writes."""
    if not is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True), encoding="utf-8")
    temporary.replace(path)


def stage_folder(out: Path, stage: str) -> Path:
    """Where a stage of the run in `out` keeps its files."""
    here, old = out / stage, _OLD_FOLDERS.get(stage)
    if old and not here.exists() and (out / old / "done.json").exists():
        return out / old
    return here


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder with its config, mesh and console. One folder belongs to one config; a field that no stage has read yet may
    still change.

    `on_log(stage, step, metrics)` is called in the main thread for every log line of a stage that trains, for example to plot.
    `imports_functions`: whether functions that the config names as text (rewards, losses, models) may be imported. `rlaif run` and
    the stages that train, curate or play the game set it. Opening, evaluating and exporting a run imports no code.
    """

    cfg: RunConfig
    out: Path
    place: Placement
    console: Console
    imports_functions: bool = False
    on_log: Callable[[str, int, Mapping[str, float]], None] = lambda stage, step, metrics: None

    def resolve(self, function: Callable[..., Any] | str) -> Callable[..., Any]:
        """A function of the config. UserError for one that is named as text where the run may not import code."""
        if not callable(function) and not self.imports_functions:
            raise UserError(f"{function!r} names code; only commands that train, curate or play the game import it")
        return resolve(function)

    def folder(self, stage: str) -> Path:
        """Where a stage keeps its files."""
        return stage_folder(self.out, stage)

    def is_done(self, stage: str) -> bool:
        """Whether the stage has finished in this folder, as this process sees it."""
        return (self.folder(stage) / "done.json").exists()

    def require(self, *stages: str) -> None:
        """An error that names the first of these stages that has not finished."""
        for stage in stages:
            if not self.is_done(stage):
                raise UserError(f"stage {stage!r} has not finished in {self.out}: run `rlaif run` there, or that stage")

    def require_needs(self, stage: Stage) -> None:
        """An error that names the first stage whose result this one reads and that has not finished."""
        self.require(*(needed.name for needed in needed_by(self.cfg, stage)))

    def mark_begun(self, stage: Stage) -> None:
        """Notes which version begins the stage. UserError where another version left it half-finished."""
        marker = self.folder(stage.name) / "begun.json"
        trains = stage.kind in ("train", "rl", "curate", "principles")
        if trains and marker.parent.exists() and any(marker.parent.iterdir()):
            found = json.loads(marker.read_text(encoding="utf-8"))["version"] if marker.exists() else 1
            if found != VERSION:
                raise UserError(
                    f"{marker.parent} was left half-finished in run-folder format {found}; this version writes format {VERSION}. "
                    "Resume it with the version that began it, or move that folder away to begin the stage again"
                )
        write_json(marker, {"version": VERSION})

    def mark_done(self, stage: str, began: float, facts: Mapping[str, Any]) -> None:
        """Writes the stage's facts; later runs skip the stage. Every process waits until they are written."""
        seconds = round(time.perf_counter() - began, 1)
        write_json(self.folder(stage) / "done.json", {"seconds": seconds, **facts})
        barrier("stage done")

    def facts(self, stage: str) -> dict[str, Any]:
        """What a finished stage wrote about itself."""
        return json.loads((self.folder(stage) / "done.json").read_text(encoding="utf-8"))


def open_run(out: str | Path, cfg: RunConfig | None = None, console: Console | None = None) -> Run:
    """Opens a run folder: an existing one with the config it was made with, or with `cfg` a new or an existing one.

    A folder in which a stage has used other values of this config's fields is refused and not changed: see `refuse_outdated`. With
    several processes all of them must see the folder; process 0 makes it.
    """
    out = Path(out)
    if cfg is None:
        cfg = saved_config(out)
    on_first(lambda: _claim(cfg, out), "open")
    mesh = make_mesh(cfg.mesh)
    connect(mesh)
    return Run(cfg, out, Placement.of(mesh, cfg.mesh.rules), console or PlainConsole())


def saved_config(out: Path) -> RunConfig:
    """The config that a run folder was made with, by this version or an earlier one."""
    saved = out / "config.json"
    if not saved.exists():
        raise UserError(f"{out} holds no run (no config.json there); expected the --out of `rlaif run`")
    values = json.loads(saved.read_text(encoding="utf-8"))
    if values.get("version", 1) > VERSION:
        raise UserError(f"{out} was made by a later version of rlaif_jax; upgrade to open it")
    return from_dict(RunConfig, values)


def _claim(cfg: RunConfig, out: Path) -> None:
    """Makes the folder this config's. UserError where it holds another run, or something else."""
    saved, wanted = out / "config.json", json.loads(json.dumps(to_dict(cfg)))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be a run's folder: {error.strerror}") from error
    if saved.exists():
        before = saved_config(out)  # a field that is newer than the run has its default
        refuse_outdated(out, before, changed_fields(before, cfg), partial(stage_folder, out))
    elif any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no run; choose another --out")
    write_json(saved, {"version": VERSION, **wanted})
