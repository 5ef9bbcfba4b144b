"""What the library needs to know about a language: how to count its texts, and sentences to send to a model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

# (request, response) -> whether the response keeps the constraint; None if the request states no such constraint
Check = Callable[[str, str], bool | None]

MARKS = re.compile(r"[^\w]|_")  # everything but letters, digits and ideographs
MANY = float("inf")
_FULL_WIDTH = {ord("０") + i: str(i) for i in range(10)} | {ord(c): "~" for c in "～〜"} | {ord("－"): "-", ord("＋"): "+"}


@dataclasses.dataclass(frozen=True)
class Size:
    """A constraint on the size of an answer: from `low` to `high` (both included) of a unit, such as "sentences"."""

    low: int
    high: float
    unit: str

    def kept(self, readings: tuple[int, ...]) -> bool | None:
        """Whether the size is kept. `readings`: the answer's size as the unit is usually counted, then as it may be counted.

        None if only an unusual reading keeps it: the request does not say which one it means.
        """
        fits = [self.low <= size <= self.high for size in readings]
        return fits[0] or (None if any(fits) else False)


@dataclasses.dataclass(frozen=True)
class Language:
    """One language, as data.

    Attributes:
      name: "zh" or "en".
      unit: what `count` counts, "characters" or "words".
      count: text -> number of units for length limits, without punctuation and item numbers.
      length: text -> number of units for length statistics.
      units: text -> the units in order, for n-grams: characters without white space, or words in lower case.
      bare_units: the same without punctuation, for the repetition rule.
      sizes: request -> the constraints that it states on the size of the answer. What is not known for certain is left out.
      counts: unit of a size -> text -> its readings (see `Size.kept`).
      checks: rules for other constraints in a request, found by their wording.
      pleas: kind of word -> pattern: the words of sentences that argue with a judge (`pleas.py`).
      fold: other spellings of characters -> the usual one, for reading such sentences.
      ask_again: the sentence that asks a model again, with the field `problem`.
      labels: spellings of the labels of data, in lower case: 1 = good, 0 = bad.
      list_names: names of the lists of rules in prompts, by "principles" and "strategies".
      verdict_labels: words that may introduce a verdict, before a colon.
      verdict_words: words of the language for the verdicts "Good" and "Bad".
      probe: a tricky text for comparing two tokenizers.
    """

    name: str
    unit: str
    count: Callable[[str], int]
    length: Callable[[str], int]
    units: Callable[[str], list[str]]
    bare_units: Callable[[str], list[str]]
    sizes: Callable[[str], list[Size]]
    counts: Mapping[str, Callable[[str], tuple[int, ...]]]
    checks: tuple[Check, ...]
    pleas: Mapping[str, str]
    fold: Mapping[str, str]
    ask_again: str
    labels: Mapping[str, int]
    list_names: Mapping[str, str]
    verdict_labels: tuple[str, ...]
    verdict_words: Mapping[str, tuple[str, ...]]
    probe: str

    @property
    def joint(self) -> str:
        """The separator between the units of an n-gram."""
        return "" if self.unit == "characters" else " "

    def ngrams(self, text: str, n: int, *, punctuation: bool = True) -> list[str]:
        """The n-grams of a text's units, in order; empty if the text has fewer than n units. ValueError for n < 1."""
        if n < 1:
            raise ValueError(f"n-grams need n >= 1, got {n}")
        units = self.units(text) if punctuation else self.bare_units(text)
        return [self.joint.join(units[i : i + n]) for i in range(len(units) - n + 1)]

    def keeps_constraints(self, request: str, response: str) -> bool | None:
        """Whether the response keeps every constraint that is found in the request; None if none is found."""
        found = [size.kept(self.counts[size.unit](response)) for size in self.sizes(request)]
        found += [check(request, response) for check in self.checks]
        known = [kept for kept in found if kept is not None]
        return all(known) if known else None


def half_width(text: str) -> str:
    """The text with full-width digits and range marks as ASCII, and without the commas in numbers such as 1,000."""
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.translate(_FULL_WIDTH))


def lines(text: str) -> int:
    """Number of lines that are not blank."""
    return sum(bool(line.strip()) for line in text.splitlines())


def paragraphs(text: str) -> int:
    """Number of paragraphs: parts between blank lines."""
    return sum(bool(part.strip()) for part in re.split(r"\n[ \t]*\n", text))
