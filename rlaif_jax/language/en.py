"""English: texts are counted in words."""

from __future__ import annotations

import re

from rlaif_jax.language.base import Language, lines, paragraphs
from rlaif_jax.language.en_pleas import LOOKALIKES, PLEAS
from rlaif_jax.language.en_sizes import of_a_part, sizes

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+|(?<=\d)[.,:](?=\d)[^\W_]+)*")
_ITEM_MARK = re.compile(r"^[ \t]*(?:\(?(\d{1,2})[.)]|[-*•–])(?=\s)", re.MULTILINE)  # at the start of a line
_INLINE_MARK = re.compile(r"(?:^|(?<=\s))\(?(\d{1,2})[.)](?=\s)")
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|st|prof|jr|sr|vs|e\.g|i\.e|[a-z])\.$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+|(?<![,;:\-–\s])\s*\n\s*")

_NEGATED = re.compile(r"(?:\bnot|n['’]t|\bnever|\bavoid|\bwithout)\s+(?:\w+\s+){0,2}$", re.IGNORECASE)
_QUOTE = r"(?:\"[^\"\n]{1,200}\"|“[^“”\n]{1,200}”|‘[^‘’\n]{1,200}’|(?<!\w)'[^'\n]{1,200}'(?!\w))"
_QUOTES = rf"{_QUOTE}(?:\s*(?:,|,?\s*\b(?:and|or|nor)\b)\s*{_QUOTE})*"
_NAMED = r"(?:the\s+)?(?:exact\s+)?(?:words?|phrases?|names?|terms?|expressions?)?\s*"
_START = re.compile(
    rf"\b(?:start|begin|open)(?:s|ing)?\s+(?:(?:it|off|(?:the|your|this|my)\s+\w+)\s+)?with\s+{_NAMED}(?P<text>{_QUOTE})",
    re.IGNORECASE,
)
_AVOID = re.compile(
    rf"(?:\b(?:do|must|should)\s+not|n['’]t|\bnever|\bwithout|\bavoid)\s+(?:(?:use|using|mention|mentioning|say|saying|include|including"
    rf"|write|writing|contain|containing)\s+)?{_NAMED}(?P<texts>{_QUOTES})",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """The words in lower case, without punctuation; "don't", "well-known" and "3.5" are one word each."""
    return [word.lower() for word in _WORD.findall(text)]


def count(text: str) -> int:
    """Number of words, without the item numbers of a list."""
    return len(words(_ITEM_MARK.sub("", text)))


def sentences(text: str) -> int:
    """Number of sentences: parts that contain a word and end with a full stop, exclamation mark, question mark or line break.

    A sentence continues after a line that ends with a comma, colon, semicolon or dash.
    """
    parts, total = [p for p in _SENTENCE_END.split(_ITEM_MARK.sub("", text).strip()) if _WORD.search(p)], 0
    for i, part in enumerate(parts):
        total += not (_ABBREVIATION.search(part) and i + 1 < len(parts))
    return total


def items(text: str) -> int:
    """Number of list items: numbers 1, 2, 3 ... in order; with fewer than two of these, lines with a list mark, else all lines."""
    expected = 1
    for found in _INLINE_MARK.findall(text):
        expected += int(found) == expected
    return expected - 1 if expected > 2 else len(_ITEM_MARK.findall(text)) or lines(text)


def _characters(text: str) -> tuple[int, ...]:
    """Number of characters, with spaces and without."""
    return len(text.strip()), len("".join(text.split()))


def _unquoted(quote: str) -> str:
    return quote[1:-1].strip().rstrip(".,").casefold()


def _holds(text: str, phrase: str) -> bool:
    """Whether the text contains the phrase as separate words. Both must have the same letter case."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None


def _start(request: str, response: str) -> bool | None:
    found = _START.search(request)
    if not found or of_a_part(request, found):
        return None
    phrase, body = _unquoted(found["text"]), response.strip().lstrip("\"'“‘*").casefold()
    starts = re.match(rf"{re.escape(phrase)}(?!\w)", body) is not None
    return starts != bool(_NEGATED.search(request[: found.start()]))


def _avoid(request: str, response: str) -> bool | None:
    phrases = [_unquoted(q) for found in _AVOID.finditer(request) for q in re.findall(_QUOTE, found["texts"])]
    body = response.casefold()
    return not any(_holds(body, phrase) for phrase in phrases) if phrases else None


EN = Language(
    name="en",
    unit="words",
    count=count,
    length=lambda text: len(words(text)),
    units=words,
    bare_units=words,
    sizes=sizes,
    counts={
        "words": lambda text: (count(text),),
        "sentences": lambda text: (sentences(text),),
        "lines": lambda text: (lines(text),),
        "paragraphs": lambda text: (paragraphs(text), lines(text)),
        "characters": _characters,
        "items": lambda text: (items(text),),
    },
    checks=(_start, _avoid),
    pleas=PLEAS,
    fold=LOOKALIKES,
    ask_again="The reply above could not be read ({problem}). Answer again in the required form.",
    labels={"good": 1, "bad": 0, "true": 1, "false": 0, "yes": 1, "no": 0},
    list_names={"principles": "principles", "strategies": "strategies"},
    verdict_labels=(
        "verdict", "final verdict", "answer", "final answer", "the answer", "my verdict", "judgment", "judgement", "rating",
        "result", "assessment", "evaluation", "conclusion", "decision",
    ),
    verdict_words={"Good": ("good",), "Bad": ("bad",)},
    probe="It's 3.14 o'clock,\tHello  World…\r\n x",
)
