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
    if path.suffix == ".py":
        cfg = _run_python(path)
    elif path.suffix in (".json", ".yaml", ".yml"):
        cfg = from_dict(RunConfig, _read(path), say=say)
    else:
        raise UserError(f"config {path}: expected a file that ends in .py, .json, .yaml or .yml")
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


def _read(path: Path) -> dict[str, Any]:
    """The fields in a JSON or YAML file. UserError for a syntax error, a field that is there twice, or a file without fields."""
    text = path.read_text(encoding="utf-8")
    found = _json(path, text) if path.suffix == ".json" else _yaml(path, text)
    if not isinstance(found, dict):
        raise UserError(f"config {path}: {'the file is empty' if found is None else 'expected fields with values'}")
    return found


def _json(path: Path, text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"config {path}: the field {twice[0]!r} is there twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once) if text.strip() else None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error


def _yaml(path: Path, text: str) -> Any:
    import yaml

    try:
        if (root := yaml.compose(text, yaml.SafeLoader)) is not None:
            _refuse_twice(path, root)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise UserError(f"{path}:{line}: not YAML: {getattr(error, 'problem', error)}") from error


def _refuse_twice(path: Path, node: Any) -> None:
    """UserError for a field that is there twice in one mapping of a YAML file: the last would win silently."""
    fields: list[str] = []
    for child in node.value if isinstance(node.value, list) else ():
        key, value = child if isinstance(child, tuple) else (None, child)
        if key is not None and key.value in fields:
            raise UserError(f"{path}:{key.start_mark.line + 1}: the field {key.value!r} is there twice")
        fields += [] if key is None else [key.value]
        _refuse_twice(path, value)


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
