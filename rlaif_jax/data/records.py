"""The four kinds of record that training and evaluation read, and their validation."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from rlaif_jax.errors import UserError


class RecordError(UserError):
    """A row is not a valid record. The message names the place, the field, what was expected and what was found."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A request. `meta` has JSON-able data for rewards, such as the right answer."""

    prompt: str
    system: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SftExample:
    """A request and an answer to imitate."""

    prompt: str
    response: str
    system: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PreferencePair:
    """Two answers to a request, one better than the other. `margin` >= 0 says by how much, in units of the score."""

    prompt: str
    chosen: str
    rejected: str
    margin: float = 0.0
    system: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LabelledResponse:
    """An answer with a label, 1 = good, 0 = bad."""

    prompt: str
    response: str
    label: int
    system: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Record = Prompt | SftExample | PreferencePair | LabelledResponse
_TEXTS = ("prompt", "response", "chosen", "rejected")
_FIELDS = {field.name for kind in (Prompt, SftExample, PreferencePair, LabelledResponse) for field in dataclasses.fields(kind)}
# Spellings of CSV, parquet and JSON.
_LABELS = {"0": 0, "0.0": 0, "False": 0, "false": 0, "1": 1, "1.0": 1, "True": 1, "true": 1}


def from_row(kind: type, row: Mapping[str, Any], where: str) -> Record:
    """A validated record of class `kind` from a mapping of its fields.

    Other columns are ignored; those of a `Prompt` go into `meta`, for rewards. `where` is the place for errors, "file:line". A
    field that is absent or None gets its default. RecordError if a prompt or answer is not text or blank, a label is not 0 or
    1, a margin is not a finite number >= 0, or chosen == rejected.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        value = row.get(field.name)
        if field.name in _TEXTS or field.name == "label":
            values[field.name] = _required(field.name, value, row, where)
        elif value is not None:
            values[field.name] = _optional(field.name, value, where)
    others = {name: value for name, value in row.items() if name not in _FIELDS and value is not None}
    if others and kind is Prompt:
        values["meta"] = others | dict(values.get("meta", {}))
    if kind is PreferencePair and values["chosen"] == values["rejected"]:
        raise RecordError(f"{where}: fields 'chosen' and 'rejected': expected two answers, both are {_short(values['chosen'])}")
    return kind(**values)


def _required(name: str, value: Any, row: Mapping[str, Any], where: str) -> str | int:
    expected = "0 or 1" if name == "label" else "text"
    if value is None:
        has = ", ".join(repr(k) for k in row) or "nothing"
        raise RecordError(f"{where}: field {name!r}: expected {expected}, found no value (the row has {has})")
    if name == "label":
        value = _LABELS.get(str(value), value)
        valid = type(value) is int and value in (0, 1)
    else:
        valid = isinstance(value, str) and bool(value.strip())
    if not valid:
        raise RecordError(f"{where}: field {name!r}: expected {expected}, found {_short(value)}")
    return value


def _optional(name: str, value: Any, where: str) -> Any:
    if name == "margin":
        with contextlib.suppress(TypeError, ValueError):
            value = float(value)
        expected, valid = "a finite number >= 0", isinstance(value, float) and math.isfinite(value) and value >= 0
    elif name == "meta":
        expected, valid = "an object", isinstance(value, Mapping)
    else:
        expected, valid = "text", isinstance(value, str)
    if not valid:
        raise RecordError(f"{where}: field {name!r}: expected {expected}, found {_short(value)}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
