"""English: texts are counted in words."""

from __future__ import annotations

import re

from rlaif_jax.language.base import Language

_SMALL = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
)
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ONES = _SMALL.split()
_VALUES = {word: i + 1 for i, word in enumerate(_ONES)} | {word: 10 * (i + 2) for i, word in enumerate(_TENS)}
_N = rf"(?:\d{{1,4}}|(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_ONES[:9])}))?|{'|'.join(reversed(_ONES))})"
_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+|(?<=\d)[.,:](?=\d)[^\W_]+)*")
_ITEM_MARK = re.compile(r"^[ \t]*(?:\(?(\d{1,2})[.)]|[-*•–])(?=\s)", re.MULTILINE)  # at the start of a line
_INLINE_MARK = re.compile(r"(?:^|(?<=\s))\(?(\d{1,2})[.)](?=\s)")
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|st|prof|jr|sr|vs|e\.g|i\.e|[a-z])\.$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+|(?<![,;:\-–\s])\s*\n\s*")

# Sizes: "at most 5 words", "in two sentences", "a list of 3 items", "2 to 3 sentences", "10 words or fewer".
_AT_MOST = (
    r"(?:no|not)\s+more\s+than|(?:not|\w*n['’]t|never|cannot)\s+(?:\w+\s+){0,3}?(?:more|longer)\s+than|at\s+most|up\s+to|within"
    r"|(?:a\s+)?maximum\s+of|(?:not|\w*n['’]t|never)\s+exceed"
)
_AT_LEAST = r"at\s+least|(?:no|not)\s+(?:fewer|less)\s+than|(?:a\s+)?minimum\s+of"
_FEWER, _MORE = r"fewer\s+than|less\s+than|under|below", r"more\s+than|over"
_EXACT = (
    r"exactly|precisely|just|only|in|write|give(?:\s+me)?|list|name|send(?:\s+\w+)?|make|use|using|as|into|with|contain(?:s|ing)?"
    r"|(?:message|note|list|poem|text|answer|reply|letter|card|greeting)\s+of"
)
_UNITS = {"words": r"words?", "sentences": r"sentences?", "lines": r"lines?", "items": r"items?|bullet\s+points?|bullets?"}
_UNIT = "|".join(f"(?P<{name}>{pattern})" for name, pattern in _UNITS.items())
_SIZE = re.compile(
    rf"(?<![\w-])(?:(?P<between>between)|(?P<most>{_AT_MOST})|(?P<least>{_AT_LEAST})|(?P<fewer>{_FEWER})|(?P<more>{_MORE})|(?P<exact>{_EXACT}))"
    rf"\s+(?:exactly\s+)?(?P<low>{_N})(?:(?:\s*[-–]\s*|\s+(?:to|or|and)\s+)(?P<high>{_N}))?"
    rf"\s+(?:(?:short|long|complete|full|simple|warm|separate|numbered)\s+)?(?:{_UNIT})"
    r"(?![\w-])(?:\s+or\s+(?:(?P<or_less>less|fewer)|(?P<or_more>more))\b)?"
    r"(?!\s+(?:that|which|starting|beginning|ending|per|of\s+(?:the|these|this)|for\s+(?:each|every)|in\s+(?:bold|italics|capitals|caps))\b)",
    re.IGNORECASE,
)
_OF_A_PART = re.compile(
    r"\b(?:each|every|per|apiece|(?:sentences?|lines?|items?|bullets?|points?|paragraphs?)\s+of)\b", re.IGNORECASE
)
_NEGATED = re.compile(r"(?:\bnot|n['’]t|\bnever|\bavoid|\bwithout)\s+(?:\w+\s+){0,2}$", re.IGNORECASE)

_QUOTE = r"(?:\"[^\"\n]+\"|“[^”\n]+”|‘[^’\n]+’|(?<!\w)'[^'\n]+'(?!\w))"
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


def number(text: str) -> int:
    """A number in digits or in words up to ninety-nine: "16", "sixteen", "twenty-five"."""
    return int(text) if text.isdigit() else sum(_VALUES[word] for word in re.split(r"[- ]", text.lower()))


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


def lines(text: str) -> int:
    """Number of lines that are not blank."""
    return sum(bool(line.strip()) for line in text.splitlines())


_COUNTS = {"words": count, "sentences": sentences, "lines": lines, "items": items}


def _sizes(request: str, response: str) -> bool | None:
    """Constraints on the size of the answer; those on the size of its parts are ignored."""
    found = []
    for match in _SIZE.finditer(request):
        bounds = _bounds(match)
        if bounds is None or _OF_A_PART.search(_clause(request, match)):
            continue
        size = next(count for name, count in _COUNTS.items() if match[name])(response)
        found.append(bounds[0] <= size <= bounds[1])
    return all(found) if found else None


def _bounds(match: re.Match) -> tuple[float, float] | None:
    """Smallest and largest size that the phrase allows; None if the phrase is no size constraint."""
    low, high = number(match["low"]), number(match["high"] or match["low"])
    if match["between"]:
        return (low, high) if match["high"] else None
    if match["most"]:
        return 0, high
    if match["fewer"] or match["more"]:
        negated = _NEGATED.search(match.string[: match.start()])
        return None if negated else (0, high - 1) if match["fewer"] else (low + 1, float("inf"))
    if match["least"] or match["or_more"]:
        return low, float("inf")
    if match["or_less"]:
        return 0, high
    return None if _NEGATED.search(match.string[: match.start()]) else (low, high)


def _clause(request: str, match: re.Match) -> str:
    """The sentence from its start until a little after the phrase."""
    start = max(request.rfind(mark, 0, match.start()) for mark in ".!?;\n") + 1
    after = re.match(r"\s+(?:each|apiece|per\b|in\s+each|for\s+each)", request[match.end() :], re.IGNORECASE)
    return request[start : match.end()] + (after[0] if after else "")


def _unquoted(quote: str) -> str:
    return quote[1:-1].strip().rstrip(".,").casefold()


def _holds(text: str, phrase: str) -> bool:
    """Whether the text contains the phrase as separate words. Both must have the same letter case."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None


def _start(request: str, response: str) -> bool | None:
    found = _START.search(request)
    if not found or _OF_A_PART.search(_clause(request, found)):
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
    checks=(_sizes, _start, _avoid),
    pleas=(
        r"[^.!?\n]*\b(?:ignore|disregard)\b[^.!?\n]*\b(?:principles|instructions|rules|criteria|above)\b[^.!?\n]*[.!?]?",
        r"[^.!?\n]*\b(?:output|answer|reply|say|rate)\b[^.!?\n]*\bgood\b[^.!?\n]*[.!?]?",
    ),
    ask_again="The reply above could not be read ({problem}). Answer again in the required form.",
    list_names={"principles": "principles", "strategies": "strategies"},
    pauses=":,.",
    probe="It's 3.14 o'clock,\tHello  World…\r\n x",
)
