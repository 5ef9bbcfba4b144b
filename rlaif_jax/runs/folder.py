"""The folder of one run: its config, the stages that have finished, and the folder of each stage."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from rlaif_jax import state_files
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


_CONFIG, _BEGUN, _DONE, _LOCK = "config.json", "begun.json", "done.json", ".lock"
_NOT_NOTED = (_BEGUN, _DONE, "checkpoints", "tensorboard", "wandb")  # checkpoints have checksums of their own


def write_json(path: Path, value: Any) -> None:
    """Writes JSON completely or not at all. With several processes only process 0 writes."""
    if is_first():
        state_files.write_json(path, value)


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
            raise UserError(
                f"{function!r} names code; only commands that train, curate or play the game import it, and judge score with "
                "--import-code"
            )
        return resolve(function)

    def folder(self, stage: str) -> Path:
        """Where a stage keeps its files."""
        return stage_folder(self.out, stage)

    def is_done(self, stage: str) -> bool:
        """Whether the stage has finished in this folder, as this process sees it."""
        return (self.folder(stage) / _DONE).exists()

    def damage(self, stage: str) -> str:
        """What happened to the files of a finished stage since then, and what to do; "" where they are as the stage left them."""
        folder = self.folder(stage)
        marker = folder / _DONE
        try:
            noted = state_files.read_state(marker)
        except UserError as error:
            return f"{error}. Delete it: the next `rlaif run` then finishes the stage {stage!r} again"
        found = state_files.digests(folder, _NOT_NOTED) if noted.get("files") else {}
        wrong = state_files.difference(folder, noted.get("files", {}), found)
        checkpoint = folder / "checkpoints" / str(noted.get("step"))
        if not wrong and "step" in noted and not checkpoint.exists():
            wrong = f"{checkpoint} is missing"
        advice = f"Restore it, or delete what is left of it and {marker}: the next `rlaif run` then makes it again"
        return f"{wrong}, since the stage {stage!r} finished. {advice}" if wrong else ""

    def require(self, *stages: str) -> None:
        """An error that names the first of these stages that has not finished, or whose files were lost or changed since."""
        for stage in stages:
            if not self.is_done(stage):
                raise UserError(f"stage {stage!r} has not finished in {self.out}: run `rlaif run` there, or that stage")
            if damage := self.damage(stage):
                raise UserError(damage)

    def require_needs(self, stage: Stage) -> None:
        """An error that names the first stage whose result this one reads and that has not finished."""
        self.require(*(needed.name for needed in needed_by(self.cfg, stage)))

    def mark_begun(self, stage: Stage) -> None:
        """Notes which version begins the stage. UserError where another version left it half-finished."""
        marker = self.folder(stage.name) / _BEGUN
        trains = stage.kind in ("train", "rl", "curate", "principles")
        if trains and marker.parent.exists() and any(marker.parent.iterdir()):
            found = _begun(marker).get("version", 1) if marker.exists() else 1
            if found != VERSION:
                raise UserError(
                    f"{marker.parent} was left half-finished in run-folder format {found}; this version writes format {VERSION}. "
                    "Resume it with the version that began it, or move that folder away to begin the stage again"
                )
        if is_first():
            state_files.write_state(marker, {"version": VERSION, "config": _identity(to_dict(self.cfg))})

    def mark_done(self, stage: str, began: float, facts: Mapping[str, Any]) -> None:
        """Writes the stage's facts; later runs skip the stage. Every process waits until they are written."""
        seconds, folder = round(time.perf_counter() - began, 1), self.folder(stage)
        if is_first():
            files = state_files.digests(folder, _NOT_NOTED)
            state_files.write_state(folder / _DONE, {"version": VERSION, "seconds": seconds, **facts, "files": files})
        barrier("stage done")

    def facts(self, stage: str) -> dict[str, Any]:
        """What a finished stage wrote about itself."""
        noted = state_files.read_state(self.folder(stage) / _DONE)
        return {k: v for k, v in noted.items() if k not in ("version", "files")}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other programs from working in this folder. UserError that names the one that does.

        A process that dies loses the lock. With several processes, process 0 holds it for all of them.
        """
        held: list[IO[str]] = []
        on_first(lambda: held.append(_lock(self.out)), "lock")
        try:
            yield
        finally:
            for file in held:
                file.close()


def _lock(out: Path) -> IO[str]:
    """The lock file, held until it is closed."""
    with state_files.writing(out / _LOCK):
        out.mkdir(parents=True, exist_ok=True)
        file = (out / _LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise UserError(f"{out} is in use by {holder}; wait until it ends, or stop it, or choose another --out") from error
    except OSError:  # a file system without locks
        pass
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def _begun(marker: Path) -> dict[str, Any]:
    try:
        return state_files.read_state(marker)
    except UserError as error:
        raise UserError(f"{error}. Move {marker.parent} away to begin the stage again") from error


def _identity(config: Mapping[str, Any]) -> str:
    """A checksum of a config without its mesh, which may differ from start to start."""
    return state_files.sealed({**config, "mesh": None})["checksum"]


def open_run(out: str | Path, cfg: RunConfig | None = None, console: Console | None = None) -> Run:
    """Opens a run folder: an existing one with the config it was made with, or with `cfg` a new or an existing one.

    A folder in which a stage has used other values of this config's fields is refused and not changed: see `refuse_outdated`. With
    several processes all of them must see the folder; process 0 makes it.
    """
    out, console = Path(out), console or PlainConsole()
    if cfg is None:
        cfg = saved_config(out)
    else:
        on_first(lambda: _claim(cfg, out, console), "open")
    mesh = make_mesh(cfg.mesh)
    connect(mesh)
    return Run(cfg, out, Placement.of(mesh, cfg.mesh.rules), console)


def saved_config(out: Path) -> RunConfig:
    """The config that a run folder was made with, by this version or an earlier one."""
    if not (out / _CONFIG).exists():
        raise UserError(f"{out} holds no run (no config.json there); expected the --out of `rlaif run`")
    return from_dict(RunConfig, _saved(out))


def _saved(out: Path) -> dict[str, Any]:
    values = state_files.read_json(out / _CONFIG)
    if isinstance(values, dict) and isinstance(values.get("version"), int) and values["version"] > VERSION:
        raise UserError(f"{out} was made by a later version of rlaif_jax; upgrade to open it")
    if isinstance(values, dict) and "model_type" in values:
        raise UserError(f"{out} is a Hugging Face folder, not a run; `rlaif generate` reads one with --model {out}")
    return state_files.read_state(out / _CONFIG)


def _claim(cfg: RunConfig, out: Path, console: Console) -> None:
    """Makes the folder this config's. UserError where it holds another run, or something else."""
    saved, wanted = out / _CONFIG, {"version": VERSION, **json.loads(json.dumps(to_dict(cfg)))}
    try:
        out.mkdir(parents=True, exist_ok=True)
        others = any(path.name != _LOCK for path in out.iterdir())
    except OSError as error:
        raise UserError(f"--out {out} cannot be a run's folder: {error.strerror}") from error
    if others and not _made_anew(out, wanted, console):
        if not saved.exists():
            raise UserError(f"{out} is not empty and holds no run; choose another --out")
        before = saved_config(out)  # a field that is newer than the run has its default
        refuse_outdated(out, before, changed_fields(before, cfg), partial(stage_folder, out))
        if _saved(out) == wanted:
            return
    state_files.write_state(saved, wanted)


def _made_anew(out: Path, wanted: Mapping[str, Any], console: Console) -> bool:
    """Whether config.json is lost or damaged and every stage of the folder began with the config `wanted`."""
    saved = out / _CONFIG
    try:
        state_files.read_state(saved)
        return False
    except UserError as error:
        damage = str(error)
    config = {k: v for k, v in wanted.items() if k != "version"}
    markers = list(out.glob(f"*/{_BEGUN}"))
    if not markers or any(_begun(marker).get("config") != _identity(config) for marker in markers):
        return False
    console.print(f"note: {damage}. It is written anew: all stages there began with this config", style="yellow", markup=False)
    return True
