"""What ran where, and with which settings, in plain words: for the report."""

from __future__ import annotations

import datetime
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from rlaif_jax import __version__
from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.stages import stages_of
from rlaif_jax.config.values import to_dict
from rlaif_jax.models.model_config import parameter_count
from rlaif_jax.runs.folder import Run
from rlaif_jax.runs.models import RunModels


def run_facts(x: Run) -> dict[str, str]:
    """What ran where: model, seed, devices, time, versions."""
    models, sampling = RunModels(x), x.cfg.evaluation.sampling
    minutes = {name: x.facts(name)["seconds"] / 60 for name in stages_of(x.cfg) if x.is_done(name)}
    mesh = " x ".join(f"{axis} {size}" for axis, size in x.place.mesh.shape.items() if size > 1)
    filters = [f"{name.replace('_', '-')} {value:g}" for name in ("top_k", "top_p", "min_p")
               if (value := getattr(sampling, name, 0)) not in (0, 1.0)]  # fmt: skip
    return {
        "policy": f"{parameter_count(models.config):,} parameters, {models.config.layers} layers",
        "seed": str(x.cfg.seed),
        "devices": mesh or "1",
        "sampling in the evaluation": ", ".join(
            [f"temperature {sampling.temperature:g}", f"at most {sampling.max_tokens} tokens", *filters]
        ),
        "minutes per stage": ", ".join(f"{k} {v:.1f}" for k, v in minutes.items()),
        "software": f"rlaif_jax {__version__}{_commit()}, jax {jax.__version__}, Python {platform.python_version()}, "
        f"{jax.devices()[0].platform}",
        "date of this report": datetime.date.today().isoformat(),
    }  # fmt: skip


def _commit() -> str:
    """The commit of a checkout that rlaif_jax runs from, "" elsewhere."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f" (commit {done.stdout.strip()})" if done.returncode == 0 and done.stdout.strip() else ""


def changed_settings(cfg: RunConfig) -> dict[str, tuple[str, str]]:
    """Settings that differ from the defaults: field -> (value, default), in plain words."""

    def flat(value: Any, path: str = "") -> dict[str, Any]:
        if isinstance(value, Mapping) and value:
            return {k: v for name, part in value.items() for k, v in flat(part, f"{path}.{name}" if path else name).items()}
        return {path: value}

    mine, default = flat(to_dict(cfg)), flat(to_dict(RunConfig()))
    return {
        name: (_setting(value), _setting(default.get(name))) for name, value in mine.items()
        if value != default.get(name) and not (value is None or value == {})
    }  # fmt: skip


def _setting(value: Any) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, (list, tuple, Mapping)):
        return plain(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def plain(value: Any) -> str:
    """A number or a setting in plain words."""
    if value is None or value != value:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value)) or "none"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
