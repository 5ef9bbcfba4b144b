"""The folder of one run: its config, which stages are done, and where each keeps its files."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from rlaif_jax.config import RunConfig
from rlaif_jax.config.values import from_dict, to_dict
from rlaif_jax.errors import UserError
from rlaif_jax.sharding import Placement, barrier, connect, is_first, make_mesh, on_first


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all (temporary file, then rename). With several processes only the first writes."""
    if not is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True), encoding="utf-8")
    temporary.replace(path)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder with its config, mesh and console. One folder belongs to one config."""

    cfg: RunConfig
    out: Path
    place: Placement
    console: Console

    def folder(self, stage: str) -> Path:
        """Where a stage keeps its files."""
        return self.out / stage

    def is_done(self, stage: str) -> bool:
        """Whether the stage has finished in this folder, as this process sees it."""
        return (self.folder(stage) / "done.json").exists()

    def require(self, *stages: str) -> None:
        """An error that names the first of these stages that has not finished; one that the config leaves out is none."""
        left_out = {"sft": self.cfg.sft is None, "reward": bool(self.cfg.reward.folder)}
        left_out["grader"] = self.cfg.grader is not None and bool(self.cfg.grader.folder)
        for stage in stages:
            if not self.is_done(stage) and not left_out.get(stage, False):
                raise UserError(f"stage {stage!r} has not finished in {self.out}: run `rlaif run` there, or that stage")

    def mark_done(self, stage: str, began: float, facts: Mapping[str, Any]) -> None:
        """Writes the stage's facts; from now on it is skipped. No process goes on before they are there."""
        seconds = round(time.perf_counter() - began, 1)
        write_json(self.folder(stage) / "done.json", {"seconds": seconds, **facts})
        barrier("stage done")

    def facts(self, stage: str) -> dict[str, Any]:
        """What a finished stage wrote about itself."""
        return json.loads((self.folder(stage) / "done.json").read_text(encoding="utf-8"))


def open_run(out: str | Path, cfg: RunConfig | None = None, console: Console | None = None) -> Run:
    """Opens a run folder: an existing one with the config it was made with, or with `cfg` a new or an existing one.

    A folder that holds a run of another config is refused and not changed. The mesh is where a run runs and not what it is:
    it may be another one, on other devices, at every start. With several processes the folder must be one that all of them
    see; the first one makes it.
    """
    out = Path(out)
    if cfg is None:
        cfg = _saved_config(out)
    on_first(lambda: _claim(cfg, out), "open")
    mesh = make_mesh(cfg.mesh)
    connect(mesh)
    return Run(cfg, out, Placement.of(mesh, cfg.mesh.rules), console or Console(quiet=True))


def _claim(cfg: RunConfig, out: Path) -> None:
    saved, wanted = out / "config.json", json.loads(json.dumps(to_dict(cfg)))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be a run's folder: {error.strerror}") from error
    if saved.exists():
        # Through the dataclass: a field that is newer than the run has its default there.
        before = to_dict(from_dict(RunConfig, json.loads(saved.read_text(encoding="utf-8")), str(saved)))
        changed = sorted(_differences(json.loads(json.dumps(before | {"mesh": None})), wanted | {"mesh": None}))
        if changed:
            raise UserError(
                f"{out} holds a run with other values of {', '.join(changed[:5])}"
                f"{' ...' if len(changed) > 5 else ''}. Choose another --out, or move that folder away."
            )
        write_json(saved, wanted)
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no run; choose another --out")
    else:
        write_json(saved, wanted)


def _saved_config(folder: Path) -> RunConfig:
    """The config that an existing run was made with."""
    saved = folder / "config.json"
    if not saved.exists():
        raise UserError(f"{folder} holds no run (no config.json there); expected the --out of `rlaif run`")
    return from_dict(RunConfig, json.loads(saved.read_text(encoding="utf-8")))


def _differences(a: Any, b: Any, path: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for k in {*a, *b} for d in _differences(a.get(k), b.get(k), f"{path}.{k}" if path else k)]
    return [] if a == b else [path]
