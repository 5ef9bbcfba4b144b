"""A run's config from a file: a Python file with `config()`, or JSON or YAML of a resolved one."""

from __future__ import annotations

import difflib
import importlib.resources
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlaif_jax.config.overrides import overridden
from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.values import from_dict
from rlaif_jax.errors import UserError, printable, read_text, shown
from rlaif_jax.rewards.function import one_line_errors, run_file


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
    path, bundled = Path(path), bundled_configs()
    if _exists(path, Path.is_file):
        return path
    if str(path) in bundled:
        return bundled[str(path)]
    if _exists(path, Path.is_dir):
        raise UserError(f"config {path} is a folder; expected a file, or a bundled config by name: {', '.join(bundled)}")
    close = difflib.get_close_matches(path.stem, bundled, n=1)
    hint = f"did you mean {close[0]}? The" if close else "the"
    raise UserError(f"config {shown(str(path), quote=False)} does not exist; {hint} bundled ones, by name: {', '.join(bundled)}")


def _exists(path: Path, test: Callable[[Path], bool]) -> bool:
    try:
        return test(path)
    except (ValueError, OSError):  # NUL bytes or too long: no file has such a name
        return False


def bundled_configs() -> dict[str, Path]:
    """The configs that come with the package, by name."""
    try:
        folder = Path(str(importlib.resources.files("rlaif_jax.configs")))
    except ModuleNotFoundError:  # a checkout that is not installed
        return {}
    return {file.stem: file for file in sorted(folder.glob("[!_]*.py"))}


def _read(path: Path) -> dict[str, Any]:
    """The fields in a JSON or YAML file. UserError for a syntax error, a field that is there twice, or a file without fields."""
    text = read_text(path)
    try:
        found = _json(path, text) if path.suffix == ".json" else _yaml(path, text)
    except RecursionError as error:
        raise UserError(f"config {path}: brackets or sections are nested too deeply") from error
    if not isinstance(found, dict):
        raise UserError(f"config {path}: {'the file is empty' if found is None else 'expected fields with values'}")
    return found


def _json(path: Path, text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = Counter(name for name, _ in pairs)
        if twice := [name for name, count in names.items() if count > 1]:
            raise UserError(f"config {path}: the field {shown(twice[0])} is there twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once) if text.strip() else None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"config {path}: not JSON: {error}") from error  # an integer of thousands of digits


def _yaml(path: Path, text: str) -> Any:
    import yaml

    try:
        if (root := yaml.compose(text, yaml.SafeLoader)) is not None:
            _refuse_twice(path, root, set())
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
        raise UserError(f"{path}:{line}: not YAML: {printable(str(problem))}") from error
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:  # of PyYAML: an impossible date, "=" ...
        if isinstance(error, UserError):
            raise
        raise UserError(f"config {path}: not YAML that can be read: {shown(str(error), quote=False)}") from error


def _refuse_twice(path: Path, node: Any, seen: set[int]) -> None:
    """UserError for a field that is there twice in one mapping of a YAML file: the last would win silently."""
    if id(node) in seen:  # an alias: the same node again
        return
    seen.add(id(node))
    fields: set[str] = set()
    for child in node.value if isinstance(node.value, list) else ():
        key, value = child if isinstance(child, tuple) else (None, child)
        if key is not None and isinstance(key.value, str):
            if key.value in fields:
                raise UserError(f"{path}:{key.start_mark.line + 1}: the field {shown(key.value)} is there twice")
            fields.add(key.value)
        _refuse_twice(path, value, seen)


def _run_python(path: Path) -> RunConfig:
    """What `config()` of a Python file returns."""
    module = run_file(path)
    if not callable(getattr(module, "config", None)):
        raise UserError(f"{path}: a config file defines a function config() that returns a RunConfig")
    with one_line_errors(path):
        cfg = module.config()
    if not isinstance(cfg, RunConfig):
        raise UserError(f"{path}: config() returned {type(cfg).__name__}; expected RunConfig")
    return cfg
