"""Sizes in English requests: number phrases ("two or three", "a dozen", "10-30"), relations ("at least", "or fewer") and units."""

from __future__ import annotations

import re

from rlaif_jax.language.base import MANY, Size, half_width

_SMALL = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
)
_ONES = _SMALL.split()
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_VALUES = {word: i + 1 for i, word in enumerate(_ONES)} | {word: 10 * (i + 2) for i, word in enumerate(_TENS)}
_BELOW_HUNDRED = rf"(?:(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_ONES[:9])})\b)?|(?:{'|'.join(reversed(_ONES))}))"
_N = (
    rf"(?:\d{{1,7}}|(?:half\s+a|a|one|two|three)\s+dozen|a\s+couple(?:\s+of)?"
    rf"|(?:a|{'|'.join(_ONES[:9])})[- ](?:hundred|thousand)(?:\s+(?:and\s+)?{_BELOW_HUNDRED})?|{_BELOW_HUNDRED})(?!\w)"
)
_UNITS = {
    "words": r"words?", "sentences": r"sentences?", "lines": r"lines?", "paragraphs": r"paragraphs?", "characters": r"characters?",
    "items": r"items?|bullet[- ]points?|bullets?",
}  # fmt: skip
_UNIT = "|".join(f"(?P<{name}>{pattern})" for name, pattern in _UNITS.items())
_ADJECTIVES = r"(?:(?:short|long|complete|full|simple|warm|separate|numbered|single)\s+)?"
_SIZE = re.compile(
    rf"(?<![\w.,/-])(?P<low>{_N})(?:(?:\s*[-–—~]\s*|\s+(?:to|and|(?P<either>or))\s+)(?P<high>{_N}))?(?P<plus>\s*\+|\s+plus)?"
    rf"(?P<so>\s+or\s+so)?(?:(?P<hyphen>-)|\s+){_ADJECTIVES}(?:{_UNIT})(?![\w-])"
    r"(?!\s+(?:that|which|starting|beginning|ending|per|of\s+(?:the|these|this)|for\s+(?:each|every)|in\s+(?:bold|italics|capitals|caps))\b)",
    re.IGNORECASE,
)
# What stands before a number, each with the bounds that it makes of low and high.
_EXACT = (
    r"exactly|precisely|just|only|in|write|give(?:\s+me)?|list|name|send(?:\s+\w+)?|make|use|using|as|into|with|contain(?:s|ing)?"
    r"|(?:message|note|list|poem|text|answer|reply|letter|card|greeting|wish|toast|story)\s+of"
)
_BEFORE = (
    ("about", r"about|around|roughly|approximately|approx\.?|circa|nearly|almost|some|like|maybe|perhaps|say|close\s+to|near|[~≈]"),
    (
        "most",
        r"(?:no|not)\s+more\s+than|(?:not|\w{1,8}n['’]t|never|cannot)\s+(?:\w+\s+){0,3}?(?:more|longer)\s+than|at\s+(?:the\s+)?most"
        r"|up\s+to|within|(?:(?:a|the)\s+)?max(?:imum|\.)?(?:\s+(?:length\s+)?(?:of|is))?:?|(?:not|\w{1,8}n['’]t|never)\s+(?:exceed|(?:go\s+)?over)"
        r"|no\s+longer\s+than|limit(?:ed)?\s+(?:(?:it|yourself|the\s+\w+|your\s+\w+)\s+)?(?:to|of|is):?|<=|≤",
    ),
    (
        "least",
        r"at\s+(?:the\s+)?(?:very\s+)?least|(?:no|not)\s+(?:fewer|less|shorter)\s+than|(?:(?:a|the)\s+)?min(?:imum|\.)?(?:\s+(?:of|is))?:?|>=|≥",
    ),
    ("fewer", r"(?:fewer|less|shorter)\s+than|under|below|<"),
    ("more", r"(?:more|longer)\s+than|over|above|exceed(?:s|ing)?|>"),
    ("between", r"between|from"),
    ("exact", _EXACT),
)
_BEFORE_PATTERNS = tuple(
    (name, re.compile(rf"(?<![\w-])(?:{words})\s*(?:exactly\s+|a\s+total\s+of\s+)?$", re.IGNORECASE)) for name, words in _BEFORE
)
_LENGTH = r"(?:\s+(?:long|in\s+length|in\s+total|total|each\s+way))?,?"
_AFTER_PATTERNS = tuple(
    (name, re.compile(rf"{_LENGTH}\s*\(?(?:{words})(?!\w)(?!\s+{_N})", re.IGNORECASE))
    for name, words in (
        ("about", r"or\s+so|or\s+thereabouts|more\s+or\s+less|give\s+or\s+take|approximately|roughly|ish"),
        ("most", r"or\s+(?:less|fewer|under|shorter|below)|max(?:imum)?|at\s+(?:the\s+)?most|tops|limit|and\s+no\s+more"),
        ("least", r"or\s+(?:more|longer|over|above)|min(?:imum)?|at\s+(?:the\s+)?(?:very\s+)?least|and\s+up"),
    )
)
_OF_A_PART = re.compile(
    r"\b(?:each|every|per|apiece|(?:sentences?|lines?|items?|bullets?|points?|paragraphs?)\s+of)\b", re.IGNORECASE
)
_PART_AFTER = re.compile(r"\s+(?:each|apiece|per\b|in\s+each|for\s+each)", re.IGNORECASE)
_NEGATED = re.compile(r"(?:\bnot|n['’]t|\bnever|\bavoid|\bwithout)\s+(?:\w+\s+){0,2}$", re.IGNORECASE)
_PART = re.compile(
    r"(?:\b(?:includ|contain|mention|quot|us|add|start|begin|end|open|clos)\w*|\bwith)\s+(?:with\s+)?(?:an?\s+|the\s+)?$",
    re.IGNORECASE,
)
_TEXT = re.compile(  # "a 20-word birthday greeting"
    r"(?:\s+\w+){0,3}?\s+(?:message|greeting|wish|note|poem|text|answer|reply|letter|card|toast|speech|story|summary|blessing|verse"
    r"|tribute|caption|tweet|post|email|response|limerick|congratulations?)(?:e?s)?\b",
    re.IGNORECASE,
)
_WINDOW = 48  # characters before a number in which its relation is looked for


def interval(text: str) -> tuple[int, int]:
    """Smallest and largest value of a number phrase: "16", "sixteen", "a dozen", "two hundred and fifty"; "a couple" is 2 to 3."""
    text = " ".join(text.lower().replace("-", " ").split())
    if text.isdecimal():
        return int(text), int(text)
    if text.startswith("a couple"):
        return 2, 3
    if text.endswith("dozen"):
        many = {"a": 12, "half a": 6}.get(text.removesuffix(" dozen")) or 12 * _VALUES[text.removesuffix(" dozen")]
        return many, many
    total = 0
    for word in text.split():
        if word in ("hundred", "thousand"):
            total *= 100 if word == "hundred" else 1000
        elif word != "and":
            total += 1 if word == "a" else _VALUES[word]
    return total, total


def sizes(request: str) -> list[Size]:
    """The sizes that a request states for the answer; those of its parts are ignored. What is not certain is left out."""
    text = half_width(request)
    return [size for match in _SIZE.finditer(text) if (size := _size(text, match)) is not None]


def _size(text: str, match: re.Match) -> Size | None:
    front = text[max(0, match.start() - _WINDOW) : match.start()]
    before, rest = next(
        ((name, front[: found.start()]) for name, pattern in _BEFORE_PATTERNS if (found := pattern.search(front))), ("", front)
    )
    after = next((name for name, pattern in _AFTER_PATTERNS if pattern.match(text, match.end())), "")
    after = "least" if match["plus"] else after
    if "about" in (before, after) or match["so"] or _BEFORE_PATTERNS[0][1].search(rest) or of_a_part(text, match):
        return None
    if before in ("most", "least", "fewer", "more") and after not in ("", before):
        return None  # "at least 20 words or fewer"
    relation = before if before in ("most", "least", "fewer", "more") else after or before
    bounds = _range(match)
    if bounds is None or (_NEGATED.search(rest) and relation not in ("most", "least")):
        return None
    low, high = bounds
    unit = next(name for name in _UNITS if match[name] is not None)
    if relation in ("most", "fewer"):
        return Size(0, high if relation == "most" else low - 1, unit)
    if relation in ("least", "more"):
        return Size(low if relation == "least" else low + 1, MANY, unit)
    if match["hyphen"]:
        return Size(low, high, unit) if _TEXT.match(text, match.end()) and not _PART.search(front) else None
    return Size(low, high, unit) if relation == "exact" or match["high"] else None


def _range(match: re.Match) -> tuple[int, int] | None:
    """Smallest and largest number of a phrase such as "10", "two or three" or "10-30"."""
    first = interval(match["low"])
    if match["high"] is None:
        return first
    second = interval(match["high"])
    low, high = min(first[0], second[0]), max(first[1], second[1])
    return None if match["either"] and high - low > 1 else (low, high)


def of_a_part(text: str, match: re.Match) -> bool:
    """Whether the sentence until a little after the match speaks of a part of the answer, such as each line."""
    start = max(text.rfind(mark, 0, match.start()) for mark in ".!?;\n") + 1
    after = _PART_AFTER.match(text, match.end())
    return _OF_A_PART.search(text[start : match.end()] + (after[0] if after else "")) is not None
