"""The four kinds of record that training and evaluation read, and their validation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rlaif_jax.errors import UserError


class RecordError(UserError):
    """A row that is not a valid record; the message names place, field, what was expected and what was found."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A request. `meta` holds what a scorer may want to know of it (JSON-able)."""

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
    """Two answers to one request, the better one first; `margin` >= 0 says by how much, in units of the score."""

    prompt: str
    chosen: str
    rejected: str
    margin: float = 0.0
    system: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LabelledResponse:
    """An answer with a verdict, 1 good or 0 bad."""

    prompt: str
    response: str
    label: int
    system: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Record = Prompt | SftExample | PreferencePair | LabelledResponse
_TEXTS = ("prompt", "response", "chosen", "rejected")


def from_row(kind: type, row: Mapping[str, Any], where: str) -> Record:
    """A validated record from a mapping of its fields; other columns are ignored. `where` is "file:line" for errors."""
    names = [f.name for f in dataclasses.fields(kind)]
    values = {name: row[name] for name in names if row.get(name) is not None}
    for name in names:
        if name in _TEXTS:
            value = values.get(name)
            if not isinstance(value, str) or not value.strip():
                raise RecordError(f"{where}: field {name!r}: expected text, found {_short(value)}")
    if "label" in names:
        values["label"] = _label(values.get("label"), where)
    if "margin" in values:
        values["margin"] = _margin(values["margin"], where)
    if not isinstance(values.get("meta", {}), Mapping):
        raise RecordError(f"{where}: field 'meta': expected an object, found {_short(values['meta'])}")
    if "chosen" in names and values["chosen"] == values["rejected"]:
        raise RecordError(f"{where}: 'chosen' and 'rejected' are the same text: {_short(values['chosen'])}")
    return kind(**values)


def _label(value: Any, where: str) -> int:
    if str(value) not in ("0", "1", "0.0", "1.0", "True", "False"):
        raise RecordError(f"{where}: field 'label': expected 0 or 1, found {_short(value)}")
    return int(str(value) in ("1", "1.0", "True"))


def _margin(value: Any, where: str) -> float:
    try:
        margin = float(value)
    except (TypeError, ValueError):
        margin = -1.0
    if not margin >= 0:
        raise RecordError(f"{where}: field 'margin': expected a number >= 0, found {_short(value)}")
    return margin


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
