"""What the library must know of a language: how to count its texts, and the words that it uses itself."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

# (request, response) -> whether the response keeps what the request asks for; None where the request asks nothing of the kind
Check = Callable[[str, str], bool | None]

MARKS = re.compile(r"[^\w]|_")  # everything but letters, digits and ideographs


@dataclasses.dataclass(frozen=True)
class Language:
    """One language, as data.

    Attributes:
      name: "zh" or "en".
      unit: what `count` counts, "characters" or "words".
      count: text -> number of units that a length limit counts: no punctuation, no item numbers.
      length: text -> number of units for statistics of lengths.
      units: text -> the units in order, for n-grams: characters without white space, or words in lower case.
      bare_units: the same without punctuation, for the repetition reward.
      checks: rules for constraints that a request states. They read its words alone.
      pleas: patterns (ignoring case) of sentences that talk to the judge in place of the user.
      ask_again: the sentence that asks a model again, with the field `problem`.
      list_names: what a prompt calls a list of rules, by "principles" or "strategies".
      pauses: punctuation that may follow a verdict.
      probe: an awkward text on which two tokenizers are compared.
    """

    name: str
    unit: str
    count: Callable[[str], int]
    length: Callable[[str], int]
    units: Callable[[str], list[str]]
    bare_units: Callable[[str], list[str]]
    checks: tuple[Check, ...]
    pleas: tuple[str, ...]
    ask_again: str
    list_names: Mapping[str, str]
    pauses: str
    probe: str

    @property
    def joint(self) -> str:
        """What stands between two units of an n-gram."""
        return "" if self.unit == "characters" else " "

    def ngrams(self, text: str, n: int, *, punctuation: bool = True) -> list[str]:
        """The n-grams of units of a text, in order; none if it is shorter than n. ValueError for n < 1."""
        if n < 1:
            raise ValueError(f"n-grams need n >= 1, got {n}")
        units = self.units(text) if punctuation else self.bare_units(text)
        return [self.joint.join(units[i : i + n]) for i in range(len(units) - n + 1)]

    def keeps_constraints(self, request: str, response: str) -> bool | None:
        """Whether the response keeps every constraint that the request states; None where it states none that is known."""
        found = [kept for check in self.checks if (kept := check(request, response)) is not None]
        return all(found) if found else None
