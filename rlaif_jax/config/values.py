"""Nested frozen dataclasses from plain values and back, for JSON, YAML and `--set`. Unknown fields and other types are refused."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from rlaif_jax.config import old_names
from rlaif_jax.errors import UserError, shown
from rlaif_jax.rewards.function import FunctionConfig, name_of


class Text(str):
    """A value as it was typed on the command line: what it means depends on the field's type."""


@functools.cache
def fields_of(kind: type) -> dict[str, Any]:
    """Field name -> annotated type."""
    return typing.get_type_hints(kind)


def default_of(field: dataclasses.Field) -> Any:
    """A field's default in its plain form; None where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return plain(field.default_factory())
    return None if field.default is dataclasses.MISSING else plain(field.default)


def known_field(name: str, kind: type, where: str) -> None:
    """UserError with a suggestion where a section has no such field."""
    hints = fields_of(kind)
    if name not in hints:
        close = difflib.get_close_matches(name, hints, n=1) if len(name) < 100 else ()
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(hints)}"
        raise UserError(f"{where}: unknown field {shown(name)}; {hint}")


def section_type(kind: Any) -> type | None:
    """The dataclass in an annotation such as `CriticConfig | None`; None where there is none."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return next((option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)), None)


def from_dict(kind: type, values: Any, where: str = "", say: Callable[[str], None] | None = None) -> Any:
    """A config from plain nested dicts: every field is checked once, when its section is made.

    Fields under a name of an earlier version are accepted; `say` gets a note on each.
    """
    say = say or (lambda _: None)
    return _section(kind, old_names.upgraded(kind, values, say), where, say)


def _section(kind: type, values: Any, where: str, say: Callable[[str], None]) -> Any:
    place = where or kind.__name__
    if not isinstance(values, Mapping):
        raise UserError(f"{place}: expected the fields of {kind.__name__}, found {shown(values)}")
    values = {old_names.current_name(kind, str(name), say): value for name, value in values.items()}
    for name in values:
        known_field(name, kind, place)
    hints = fields_of(kind)
    found = {
        n: _checked(old_names.current_value(kind, n, v), hints[n], f"{where}.{n}" if where else n, say) for n, v in values.items()
    }
    try:
        return kind(**found)
    except UserError as error:
        if str(error).startswith(f"{kind.__name__}."):  # the name of a field, which is known here with what is around it
            raise UserError(f"{where}.{str(error).partition('.')[2]}" if where else str(error).partition(".")[2]) from error
        if where and not str(error).startswith(where.split(".")[0]):
            raise UserError(f"{where}: {error}") from error
        raise


def _checked(value: Any, kind: Any, where: str, say: Callable[[str], None]) -> Any:
    """`value` as the annotated type, or an error that says what was expected and found."""
    if isinstance(value, Text) and kind is not str:
        value = parsed(value)
    if kind is Any:
        return value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if kind is FunctionConfig and (callable(value) or isinstance(value, str)):
            value = {"function": value}
        return value if isinstance(value, kind) else _section(kind, value, where, say)
    if isinstance(kind, types.UnionType):
        return _one_of(value, typing.get_args(kind), where, say)
    if typing.get_origin(kind) is dict and isinstance(value, Mapping):
        return {str(k): _checked(v, typing.get_args(kind)[1], f"{where}.{k}", say) for k, v in value.items()}
    if kind is float and type(value) in (int, float):
        return _float(value, where)
    if kind is str and isinstance(value, str):
        return str(value)
    if kind in (int, bool) and type(value) is kind:
        return value
    name = getattr(kind, "__name__", str(kind))
    raise UserError(f"{where}: expected {name}, found {shown(value)} ({type(value).__name__})")


def _float(value: float, where: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise UserError(f"{where}: expected a float, found {shown(value)}") from error


def _one_of(value: Any, kinds: tuple[Any, ...], where: str, say: Callable[[str], None]) -> Any:
    if value is None and type(None) in kinds:
        return None
    if callable(value) and any(typing.get_origin(k) is not None for k in kinds):
        return value
    return _checked(value, next(k for k in reversed(kinds) if k is not type(None)), where, say)


def parsed(text: str) -> Any:
    """A value of the command line: true, false, none, a number, a list or a dict; else the text itself."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):  # "[[[..." beyond the depth of Python's parser
        return str(text)


def plain(cfg: Any, leaf: Callable[[Any], Any] = lambda value: value) -> Any:
    """The config as nested dicts whose other values went through `leaf`."""
    if dataclasses.is_dataclass(cfg):
        return {f.name: plain(getattr(cfg, f.name), leaf) for f in dataclasses.fields(cfg)}
    if isinstance(cfg, Mapping):
        return {k: plain(v, leaf) for k, v in cfg.items()}
    return leaf(cfg)


def to_dict(cfg: Any) -> dict[str, Any]:
    """The config as nested dicts that JSON and YAML can hold; functions by name."""
    return plain(cfg, lambda value: name_of(value) if callable(value) else value)
