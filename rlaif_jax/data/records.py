"""The four kinds of record that training and evaluation read, and their validation."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from rlaif_jax.errors import UserError
from rlaif_jax.language import LANGUAGES


class RecordError(UserError):
    """A row is not a valid record. The message names the place, the field, what was expected and what was found."""


History = tuple[tuple[str, str], ...]  # earlier turns of a chat, (request, answer) each


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A request that is sampled and rated, without earlier turns. `meta` has JSON-able data for rewards: the right answer ..."""

    prompt: str
    system: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SftExample:
    """A request and an answer to imitate. `history` has the turns before the request, (request, answer) each."""

    prompt: str
    response: str
    system: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    history: History = ()


@dataclasses.dataclass(frozen=True)
class PreferencePair:
    """Two answers to a request, one better than the other. `margin` >= 0 says by how much, in units of the score."""

    prompt: str
    chosen: str
    rejected: str
    margin: float = 0.0
    system: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    history: History = ()


@dataclasses.dataclass(frozen=True)
class LabelledResponse:
    """An answer with a label, 1 = good, 0 = bad."""

    prompt: str
    response: str
    label: int
    system: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    history: History = ()


Record = Prompt | SftExample | PreferencePair | LabelledResponse
_TEXTS = ("prompt", "response", "chosen", "rejected")
# Spellings of numbers in CSV, parquet and JSON, and the words of every language.
_LABELS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1} | {w: v for pack in LANGUAGES.values() for w, v in pack.labels.items()}
_LABEL = "0 or 1 (or bad and good, false and true, no and yes)"


def request_of(record: Record) -> tuple[Any, ...]:
    """What a model is asked: system text, earlier turns and prompt. Two records with the same one are about the same request."""
    return (record.system, getattr(record, "history", ()), record.prompt)


def turns_of(record: Record) -> list[dict[str, str]]:
    """The messages of a record's chat, up to the request."""
    turns = [("system", record.system)] if record.system else []
    for request, answer in getattr(record, "history", ()):
        turns += [("user", request), ("assistant", answer)]
    return [{"role": role, "content": text} for role, text in (*turns, ("user", record.prompt))]


def from_row(kind: type, row: Mapping[str, Any], where: str) -> Record:
    """A validated record of class `kind` from a mapping of its fields.

    Other columns are ignored; those of a `Prompt` go into `meta`, for rewards. `where` is the place for errors, "file:line". An
    optional field that is absent, None or empty gets its default. RecordError if a prompt or answer is not text or blank, a text
    has half of a surrogate pair or a NUL character, a label is none of the known spellings, a margin is not a finite number >= 0,
    or chosen == rejected.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    values: dict[str, Any] = {}
    for name in names:
        value = row.get(name)
        if name in _TEXTS or name == "label":
            values[name] = _required(name, value, row, where)
        elif value is not None and value != "" and value != ():
            values[name] = _optional(name, value, where)
    others = {name: value for name, value in row.items() if name not in names and value is not None}
    if others and kind is Prompt:
        values["meta"] = others | dict(values.get("meta", {}))
    _check_texts(values, where)
    if kind is PreferencePair and values["chosen"] == values["rejected"]:
        raise RecordError(f"{where}: fields 'chosen' and 'rejected': expected two answers, both are {_short(values['chosen'])}")
    return kind(**values)


def _required(name: str, value: Any, row: Mapping[str, Any], where: str) -> str | int:
    expected = _LABEL if name == "label" else "text"
    if value is None:
        has = ", ".join(repr(k) for k in row) or "nothing"
        raise RecordError(f"{where}: field {name!r}: expected {expected}, found no value (the row has {has})")
    if name == "label":
        value = _LABELS.get(value.strip().casefold() if isinstance(value, str) else str(value).casefold(), value)
        valid = type(value) is int and value in (0, 1)
    else:
        valid = isinstance(value, str) and bool(value.strip())
    if not valid:
        raise RecordError(f"{where}: field {name!r}: expected {expected}, found {_short(value)}")
    return value


def _optional(name: str, value: Any, where: str) -> Any:
    if name == "meta":
        return _meta(value)
    if name == "margin":
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            value = float(value) if "_" not in str(value) else value
        expected, valid = "a finite number >= 0", isinstance(value, float) and math.isfinite(value) and value >= 0
    elif name == "history":
        value = _parsed(value)
        expected = "a list of [request, answer]"
        valid = isinstance(value, (list, tuple)) and all(_is_turn(turn) for turn in value)
        value = tuple(tuple(turn) for turn in value) if valid else value
    else:
        expected, valid = "text", isinstance(value, str)
    if not valid:
        raise RecordError(f"{where}: field {name!r}: expected {expected}, found {_short(value)}")
    return value


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, (list, tuple)) and len(turn) == 2 and all(isinstance(t, str) and t.strip() for t in turn)


def _meta(value: Any) -> Mapping[str, Any]:
    """A row's `meta`: an object, or JSON text of one; a column of that name with anything else is one of the user's own."""
    found = _parsed(value)
    return found if isinstance(found, Mapping) else {"meta": value}


def _parsed(value: Any) -> Any:
    """The value of a JSON text; other values unchanged."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(value) if isinstance(value, str) else value
    return value


def _check_texts(values: Mapping[str, Any], where: str) -> None:
    """RecordError for a character that no text file can hold: half of a surrogate pair, or NUL."""
    for name, value in values.items():
        for text in _texts_in(value):
            if "\x00" in text:
                raise RecordError(f"{where}: field {name!r}: has a NUL character (U+0000) at character {text.index(chr(0)) + 1}")
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                found = f"half of a surrogate pair (U+{ord(text[error.start]):04X}) at character {error.start + 1}"
                raise RecordError(f"{where}: field {name!r}: has {found}, probably a cut emoji; remove it") from error


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts_in(key)
            yield from _texts_in(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts_in(inner)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
