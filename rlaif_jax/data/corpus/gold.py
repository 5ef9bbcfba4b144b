"""The gold scorer: which flaws a text has as an answer to a request.

It knows the grammar of the corpus, so it is for evaluation and labels. Never use it as a training reward: that would only show that
its score can be optimised. It is not independent of all training: the transcripts from which the embedded judge learns have its
labels (`feedback/transcripts.py`), so it reaches the rewards of that judge, and what it debates, through them.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

from rlaif_jax.data.corpus.flaws import FLAWS
from rlaif_jax.data.corpus.phrases import Role, beginnings, canonical, roles
from rlaif_jax.data.corpus.recipients import RELATIONS, TOPICS, group_of, pronoun
from rlaif_jax.data.corpus.requests import Request

MAX_CHARS, MAX_CHARS_LIST, MIN_CHARS, MANY_CLICHES = 60, 90, 12, 2
_NUMBER = re.compile(r"(?:^|(?<=[。！？!\n]))\s*([1-9])\s*[.、．)）:：]")
_MARKS = re.compile(r"([，。！；：、？～,!;:?~]+)")
_ADVERT = re.compile(r"扫码|链接|优惠|打折|[一二三四五六七八九]折|微信|公众号|下载|促销|https?|www|\d{5,}")
_BLANK_SLOT = re.compile(r"某某|[xX×]{2,}|[\[【{(（].*?[\]】})）]|_{2,}|＿|○○")
_OCCASION_KINDS = frozenset({"opening", "image", "wish", "four"})
_GROUP_KINDS = frozenset({"group", "group_four"})


@dataclasses.dataclass(frozen=True)
class _Clause:
    text: str
    key: str
    roles: tuple[Role, ...]
    first: bool  # it begins its item
    broken: bool  # it ends the text without a punctuation mark


@dataclasses.dataclass
class _Parsed:
    text: str
    items: list[list[_Clause]]
    listed: bool
    flaws: set[str]

    @property
    def clauses(self) -> list[_Clause]:
        return [clause for item in self.items for clause in item]


def count_chars(text: str) -> int:
    """Number of Chinese characters; punctuation, digits and blanks are not counted."""
    return sum("一" <= char <= "鿿" for char in text)


def gold_flaws(request: Request, response: str) -> tuple[str, ...]:
    """The flaws of `response` as an answer to `request`, in the order of `FLAWS`. Any text is allowed.

    For evaluation and labels, not a training reward (see the module's docstring).
    """
    parsed = _parse(response)
    short = _is_short_form(parsed)
    flaws = set(parsed.flaws)
    flaws |= _surface_flaws(parsed)
    flaws |= _relative_flaws(request, parsed)
    flaws |= _constraint_flaws(request, parsed, short)
    if not flaws & {"cliche", "unfinished"}:  # in those texts, missing parts are only a consequence
        flaws |= _missing(request, parsed, short)
    if not parsed.clauses:
        flaws |= {"too_short", "unfinished"}
    return tuple(flaw for flaw in FLAWS if flaw in flaws)


def is_excellent(request: Request, response: str) -> bool:
    """Whether the answer has no flaw. For evaluation and labels, not a training reward."""
    return not gold_flaws(request, response)


def is_compliant(request: Request, response: str) -> bool | None:
    """Whether the explicit constraint is met; None if the request has none. For evaluation and labels only."""
    if request.constraint is None:
        return None
    parsed = _parse(response)
    return bool(parsed.clauses) and _meets(request, parsed)


def _parse(response: str) -> _Parsed:
    text, flaws = response.strip(), set()
    numbers = [int(m.group(1)) for m in _NUMBER.finditer(text)]
    if numbers:
        bodies = _NUMBER.sub("\0", text).split("\0")
        if bodies[0].strip() or numbers != list(range(1, len(numbers) + 1)):
            flaws.add("garbled")
        bodies = bodies[1:]
    else:
        bodies = [line for line in text.splitlines() if line.strip()]
    items = [_clauses(re.sub(r"\s", "", body), flaws) for body in bodies]
    return _Parsed(text, items, len(bodies) > 1 or bool(numbers), flaws)


def _clauses(body: str, flaws: set[str]) -> list[_Clause]:
    """The clauses of one item. Adds flaws of punctuation to `flaws`."""
    parts = _MARKS.split(body)  # clause, marks, clause, marks, ..., text after the last mark
    tail = parts[-1]
    if tail or len(parts) < 2 or parts[-2][-1] not in "。！～!~":
        flaws.add("unfinished")
    if not parts[0] or any(len(mark) > 1 for mark in parts[1::2]):
        flaws.add("garbled")
    texts = [t for t in parts[0::2] if t]
    found = []
    for i, text in enumerate(texts):
        key = canonical(text)
        found.append(_Clause(text, key, roles().get(key, ()), i == 0, bool(tail) and i == len(texts) - 1))
    return found


def _is_short_form(parsed: _Parsed) -> bool:
    """Whether all lines have four characters."""
    return bool(parsed.clauses) and all(len(c.text) == 4 and c.roles for c in parsed.clauses)


def _surface_flaws(parsed: _Parsed) -> set[str]:
    """Flaws of the text itself, for any request."""
    flaws = set()
    for clause in parsed.clauses:
        kinds = {role.kind for role in clause.roles}
        if "advert" in kinds or _ADVERT.search(clause.text):
            flaws.add("advertising")
        elif "placeholder" in kinds or _BLANK_SLOT.search(clause.text):
            flaws.add("placeholder")
        elif not kinds:
            cut = clause.broken and clause.key in beginnings()
            flaws.add("unfinished" if cut else "garbled")
        elif kinds == {"address"} and not clause.first:
            flaws.add("garbled")
    counts = Counter(clause.key for clause in parsed.clauses)
    if any(n > 1 for n in counts.values()):
        flaws.add("repetition")
    if sum(any(r.kind == "cliche" for r in clause.roles) for clause in parsed.clauses) >= MANY_CLICHES:
        flaws.add("cliche")
    return flaws


def _relative_flaws(request: Request, parsed: _Parsed) -> set[str]:
    """Flaws relative to the recipient, occasion and tone of the request."""
    flaws = {flaw for clause in parsed.clauses if (flaw := _clause_flaw(request, clause))}
    wrong = "你" if pronoun(request.recipient, request.tone) == "您" else "您"
    if wrong in parsed.text:
        flaws.add("wrong_register")
    return flaws


def _clause_flaw(request: Request, clause: _Clause) -> str:
    """The flaw of one clause; "" if at least one of its roles fits the request."""
    flaw = ""
    for role in clause.roles:
        flaw = _role_flaw(request, role)
        if not flaw:
            return ""
    return flaw


def _role_flaw(request: Request, role: Role) -> str:
    if role.kind == "address":
        return "" if role.owner == request.recipient else "wrong_recipient"
    if role.kind in _OCCASION_KINDS:
        return "" if role.owner == request.occasion else "off_occasion"
    if role.kind in _GROUP_KINDS:
        return "" if role.owner == group_of(request.recipient) else "wrong_relation"
    if role.kind == "closing":
        return "" if role.owner in closings_for(request) else "wrong_tone"
    if role.kind == "topic":
        return "" if may_say(request, role.owner) else "taboo"
    return ""


def closings_for(request: Request) -> tuple[str, ...]:
    """Kinds of closing that suit the request's tone."""
    if request.tone == "幽默":
        return ("温馨", "幽默")
    kinds = ("温馨", "文艺") if request.tone in ("", "文艺") else ("温馨",)
    formal = pronoun(request.recipient, request.tone) == "您" and request.tone in ("", "敬语")
    return (*kinds, "敬语") if formal else kinds


def may_say(request: Request, topic: str) -> bool:
    """Whether a sensitive topic suits this recipient and this occasion."""
    row = TOPICS[topic]
    told = RELATIONS.get(request.relation) == topic
    return not told and group_of(request.recipient) in row.groups and request.occasion not in row.never


def _constraint_flaws(request: Request, parsed: _Parsed, short: bool) -> set[str]:
    """Violations of the explicit constraint, or of the usual form if the request has none."""
    kind = request.constraint[0] if request.constraint else ""
    flaws = set()
    count = count_chars(parsed.text)
    if kind and not _meets(request, parsed):
        names = {"chars": "wrong_length", "max_chars": "wrong_length", "items": "wrong_count", "start": "wrong_form",
                 "four": "wrong_form", "mention": "ignored_detail", "avoid": "ignored_detail"}  # fmt: skip
        flaws.add(names[kind])
    if kind != "items" and parsed.listed:
        flaws.add("wrong_count")
    if count > (MAX_CHARS_LIST if kind == "items" or parsed.listed else MAX_CHARS):
        flaws.add("wrong_length")
    few = kind == "four" and short and len(parsed.clauses) < 3
    if (kind not in ("chars", "four") and (short or count < MIN_CHARS)) or few:
        flaws.add("too_short")
    return flaws


def _meets(request: Request, parsed: _Parsed) -> bool:
    kind, value = request.constraint
    if kind in ("chars", "max_chars"):
        count = count_chars(parsed.text)
        return count == value if kind == "chars" else count <= value
    if kind == "items":
        return len(parsed.items) == value and all(len(item) >= 2 for item in parsed.items)
    if kind == "start":
        return parsed.text.startswith(value)
    if kind == "four":
        return all(count_chars(clause.text) == len(clause.text) == 4 for clause in parsed.clauses)
    return (value in parsed.text) == (kind == "mention")


def _missing(request: Request, parsed: _Parsed, short: bool) -> set[str]:
    """Flaws of missing parts: an image, a wish, or a clause in the requested tone."""
    found = {role.kind for clause in parsed.clauses for role in clause.roles}
    if short or (request.constraint and request.constraint[0] in ("chars", "four")):
        return set() if found & _OCCASION_KINDS else {"empty_template"}
    flaws = set()
    if "image" not in found:
        flaws.add("empty_template")
    if not found & {"wish", "group"}:
        flaws.add("no_wish")
    tones = {role.owner for clause in parsed.clauses for role in clause.roles if role.kind == "closing"}
    if request.tone in ("幽默", "文艺") and request.tone not in tones:
        flaws.add("wrong_tone")
    return flaws
