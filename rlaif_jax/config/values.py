"""Nested frozen dataclasses from plain values and back: `a.b=c` overrides, JSON. What is unknown or of another type is refused."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from rlaif_jax.errors import UserError


def override(cfg: Any, item: str) -> Any:
    """The config with one field changed by "a.b=value", type-checked."""
    name, equals, text = item.partition("=")
    if not equals:
        raise UserError(f"--set {item!r}: expected field=value, for example --set sft.train.steps=100")
    return _replace(cfg, name.split("."), text, name)


def overridden(cfg: Any, items: Sequence[str]) -> Any:
    """The config with all of these fields changed. Their order matters for one field only, whose last value counts: what is
    refused by itself (`sft=none` before `model.init_from=...`) is tried again after the others."""
    waiting: list[str] = list(items)
    while waiting:
        refused: list[tuple[str, UserError]] = []
        for item in waiting:
            if any(item.partition("=")[0] == other.partition("=")[0] for other, _ in refused):
                refused.append((item, refused[0][1]))
                continue
            try:
                cfg = override(cfg, item)
            except UserError as error:
                refused.append((item, error))
        if len(refused) == len(waiting):
            raise refused[0][1]
        waiting = [item for item, _ in refused]
    return cfg


def _replace(node: Any, path: list[str], text: str, full: str) -> Any:
    if not dataclasses.is_dataclass(node):
        raise UserError(f"--set {full}: {'.'.join(full.split('.')[: -len(path)])} has no fields")
    hints = typing.get_type_hints(type(node))
    _known(path[0], hints, full)
    if len(path) == 1:
        value = _parse(text, hints[path[0]], full)
    else:
        value = _replace(getattr(node, path[0]), path[1:], text, full)
    return dataclasses.replace(node, **{path[0]: value})


def _known(name: str, hints: Mapping[str, Any], where: str) -> None:
    if name not in hints:
        close = difflib.get_close_matches(name, hints, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(hints)}"
        raise UserError(f"{where}: unknown field {name!r}; {hint}")


def _parse(text: str, kind: Any, where: str) -> Any:
    if kind is str:
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False", "none": "None", "null": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        value = text
    return _checked(value, kind, where)


def _checked(value: Any, kind: Any, where: str) -> Any:
    """`value` as the annotated type, or an error that says what was expected and found."""
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else from_dict(kind, value, where)
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        return _checked(value, next(a for a in typing.get_args(kind) if a is not type(None)), where)
    if typing.get_origin(kind) is dict and isinstance(value, dict):
        return {str(k): _checked(v, typing.get_args(kind)[1], f"{where}[{k!r}]") for k, v in value.items()}
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    name = getattr(kind, "__name__", str(kind))
    raise UserError(f"{where}: expected {name}, found {value!r} ({type(value).__name__})")


def to_dict(cfg: Any) -> dict[str, Any]:
    """The config as plain nested dicts, for JSON."""
    return dataclasses.asdict(cfg)


def from_dict(kind: type, values: Any, where: str = "config") -> Any:
    """The inverse of `to_dict`, with the same checks as `--set`."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected a mapping with the fields of {kind.__name__}, found {values!r}")
    hints = typing.get_type_hints(kind)
    for name in values:
        _known(name, hints, where)
    return kind(**{n: _checked(v, hints[n], f"{where}.{n}") for n, v in values.items()})
