"""A run's config from a file: Python, or JSON of a resolved one."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.values import from_dict, overridden
from rlaif_jax.errors import UserError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Runs `config()` of a Python file and applies `a.b=c` overrides. Errors name the file or the field."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"config {path} does not exist; ready ones are in configs/")
    if path.suffix == ".json":
        cfg = from_dict(RunConfig, json.loads(path.read_text(encoding="utf-8")))
    else:
        spec = importlib.util.spec_from_file_location("rlaif_user_config", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not callable(getattr(module, "config", None)):
            raise UserError(f"{path}: a config file defines a function config() that returns a RunConfig")
        cfg = module.config()
    if not isinstance(cfg, RunConfig):
        raise UserError(f"{path}: config() returned {type(cfg).__name__}; expected RunConfig")
    return overridden(cfg, overrides)
