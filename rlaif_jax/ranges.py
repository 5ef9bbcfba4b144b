"""The range of every number in a config, as part of the field's type, and the check of a section against its types.

    warmup: Share = 0.03
    layers: Annotated[int, Range(1, 4096)] = 4

A section calls `check_fields(self)` in its `__post_init__`. Where a range has no natural end, its bound is far beyond any use: it
catches infinities, NaN and slips of the keyboard.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from rlaif_jax.errors import UserError, shown

MANY = 2**31 - 1  # bound of a count: int32


@dataclasses.dataclass(frozen=True)
class Range:
    """The values from `low` to `high`, without `low` if `above`, without `high` if `below`, and with the value `also`."""

    low: float
    high: float
    above: bool = False
    below: bool = False
    also: int | None = None

    def __contains__(self, value: float) -> bool:
        if value == self.also and self.also is not None:
            return True
        return (self.low < value if self.above else self.low <= value) and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low = f"{'more than' if self.above else 'at least'} {self.low:g}"
        high = f"{'less than' if self.below else 'at most'} {self.high:g}"
        also = "" if self.also is None else f", or {self.also}"
        return f"{low if self.high >= 1e6 else f'{low} and {high}'}{also}"

    def expected(self, value: float) -> str:
        """What a value outside the range should have been; names the bound that it exceeds."""
        if self.low == self.high:
            return f"{self.low:g}"
        too_large = isinstance(value, numbers.Real) and value > self.high
        return f"at most {self.high:g}" if too_large and self.high >= 1e6 else str(self)


Count = Annotated[int, Range(1, MANY)]
CountOrZero = Annotated[int, Range(0, MANY)]  # 0 = off, none or all: the field says which
Tokens = Annotated[int, Range(1, 2**24)]  # a limit on the length of a text
Seed = Annotated[int, Range(0, 2**32 - 1)]
Share = Annotated[float, Range(0, 1)]
ShareBelowOne = Annotated[float, Range(0, 1, below=True)]
Weight = Annotated[float, Range(0, 1e6)]
SignedWeight = Annotated[float, Range(-1e6, 1e6)]
Positive = Annotated[float, Range(0, 1e6, above=True)]
Seconds = Annotated[float, Range(0, 1e7)]
Money = Annotated[float, Range(0, 1e9)]
Temperature = Annotated[float, Range(0.01, 100, also=0)]


def check_fields(section: Any) -> None:
    """UserError for a field of another type than its annotation, or for a number outside its range: "TrainConfig.steps is 0"."""
    for name, hint in hints_of(type(section)).items():
        _check(getattr(section, name), hint, f"{type(section).__name__}.{name}")


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """Field name -> annotated type, ranges included."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def range_of(hint: Any) -> Range | None:
    """The range in an annotation, None where it has none."""
    found = (part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Range))
    return next(found, None)


def _check(value: Any, hint: Any, name: str) -> None:
    limits, kind = range_of(hint), typing.get_origin(hint)
    if kind is Annotated:
        hint = typing.get_args(hint)[0]
    if isinstance(hint, types.UnionType):
        options = typing.get_args(hint)
        if not any(_fits(value, option) for option in options):
            raise UserError(f"{name} is {shown(value)}; expected {' or '.join(_word(option) for option in options)}")
        return
    if hint is Any:
        return
    if not _fits(value, hint):
        raise UserError(f"{name} is {shown(value)}; expected {_word(hint)}")
    if kind is dict:
        for key, entry in value.items():
            _check(entry, typing.get_args(hint)[1], f"{name}.{shown(key, quote=False)}")
    if limits is not None and value not in limits:
        raise UserError(f"{name} is {shown(value)}; expected {limits.expected(value)}")


def _fits(value: Any, hint: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    if kind is type(None):
        return value is None
    if kind is Callable:
        return callable(value)
    if kind in (int, float):
        number = isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)
        return number and (kind is int or not math.isnan(value))
    return isinstance(value, Mapping if kind is dict else kind)


def _word(hint: Any) -> str:
    kind = typing.get_origin(hint) or hint
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "entries by name"}
    return words.get(kind, "none" if kind is type(None) else "a function" if kind is Callable else kind.__name__)
