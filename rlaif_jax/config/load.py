"""A run's config from a file: a Python file with `config()`, or JSON or YAML of a resolved one."""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlaif_jax.config.overrides import overridden
from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.values import from_dict
from rlaif_jax.errors import UserError
from rlaif_jax.rewards.function import run_file


def load_config(path: str | Path, overrides: Sequence[str] = (), say: Callable[[str], None] | None = None) -> RunConfig:
    """The config of a file, or of the bundled config of that name, with `a.b=c` overrides. Errors name the file or the field.

    `say` gets a note on each field that is written under the name of an earlier version.
    """
    path = find_config(path)
    if path.suffix in (".json", ".yaml", ".yml"):
        cfg = from_dict(RunConfig, _read(path), say=say)
    else:
        cfg = _run_python(path)
    return overridden(cfg, overrides, say)


def find_config(path: str | Path) -> Path:
    """The file `path`, or where there is none, the bundled config of that bare name (`greetings_demo`)."""
    path = Path(path)
    if path.is_file():
        return path
    bundled = bundled_configs()
    if str(path) not in bundled:
        raise UserError(f"config {path} does not exist; the bundled ones, by name: {', '.join(bundled) or 'none installed'}")
    return bundled[str(path)]


def bundled_configs() -> dict[str, Path]:
    """The configs that come with the package, by name."""
    try:
        folder = Path(str(importlib.resources.files("rlaif_jax.configs")))
    except ModuleNotFoundError:  # a checkout that is not installed
        return {}
    return {file.stem: file for file in sorted(folder.glob("[!_]*.py"))}


def _read(path: Path) -> Any:
    """The plain values of a JSON or YAML file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise UserError(f"{path}:{line}: not YAML: {getattr(error, 'problem', error)}") from error


def _run_python(path: Path) -> RunConfig:
    """What `config()` of a Python file returns."""
    try:
        module = run_file(path)
        if not callable(getattr(module, "config", None)):
            raise UserError(f"{path}: a config file defines a function config() that returns a RunConfig")
        cfg = module.config()
    except TypeError as error:
        if found := re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)):
            raise UserError(f"{path}: {found[1]} has no field {found[2]!r}; `rlaif config list` shows all of them") from error
        raise
    if not isinstance(cfg, RunConfig):
        raise UserError(f"{path}: config() returned {type(cfg).__name__}; expected RunConfig")
    return cfg
