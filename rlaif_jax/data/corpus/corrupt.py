"""Answers with a planted flaw.

For a request-relative flaw, a slightly different request is answered, so the text alone does not show the flaw. For a flaw of
the text itself, the plan or the text of a good answer is edited, at about the same length.
"""

from __future__ import annotations

import dataclasses
import random

from rlaif_jax.data.corpus.flaws import FLAWS, applicable_flaws, other_occasions, other_recipients, taboo_topics
from rlaif_jax.data.corpus.gold import count_chars, gold_flaws
from rlaif_jax.data.corpus.occasions import OCCASIONS
from rlaif_jax.data.corpus.phrases import canonical, roles
from rlaif_jax.data.corpus.recipients import (
    ADVERTS,
    CLICHES,
    FIXED_FAMILIAR,
    FIXED_FORMAL,
    PLACEHOLDERS,
    group_of,
    pronoun,
)
from rlaif_jax.data.corpus.requests import Request
from rlaif_jax.data.corpus.responses import TRIES, Piece, Plan, Style, acceptable_size, make_plan, render, speak


def flawed_response(rng: random.Random, request: Request, flaw: str, second: str = "") -> str:
    """A text with `flaw` for the request and, if the grammar allows it, no other flaw.

    Args:
      rng: source of randomness.
      request: the request.
      flaw: a flaw of `applicable_flaws(request)`.
      second: a second flaw, which must be one of the text itself (not request-relative), or "".

    Raises:
      ValueError: the flaw does not apply to this request.
    """
    if flaw not in applicable_flaws(request):
        raise ValueError(f"flaw {flaw!r} does not apply to the request {request.text!r}; "
                         f"expected one of {', '.join(applicable_flaws(request))}")  # fmt: skip
    wanted = tuple(f for f in FLAWS if f in (flaw, second))
    fallback = ""
    for attempt in range(TRIES):
        if FLAWS[flaw].request_relative:
            plan = make_plan(rng, *_neighbour(rng, request, flaw))
        else:
            plan = _edit_plan(rng, request, make_plan(rng, request, Style()), flaw)
        plan = _edit_plan(rng, request, plan, second)
        text = _edit_text(rng, request, _edit_text(rng, request, render(rng, plan), flaw), second)
        found = gold_flaws(request, text)
        if found == wanted and acceptable_size(text):
            return text
        if set(wanted) <= set(found):
            fallback = text
        if fallback and attempt > TRIES // 2:
            break
    if not fallback:
        raise ValueError(f"flaw {flaw!r} could not be planted for the request {request.text!r}")
    return fallback


def _neighbour(rng: random.Random, request: Request, flaw: str) -> tuple[Request, Style]:
    """The request (and style) whose good answers have this flaw for `request`."""
    say = pronoun(request.recipient, request.tone)
    fixed = group_of(request.recipient) in FIXED_FORMAL | FIXED_FAMILIAR
    if flaw == "off_occasion":
        return dataclasses.replace(request, occasion=rng.choice(other_occasions(request))), Style()
    if flaw in ("wrong_recipient", "wrong_relation"):
        return _other_recipient(rng, request, flaw, say)
    if flaw == "wrong_register":
        plain = False if fixed else None
        return _toneless(request), Style("你" if say == "您" else "您", address=plain, group=plain)
    if flaw == "wrong_tone":
        styled = request.tone in ("幽默", "文艺")
        tone = rng.choice([t for t in ("", "文艺", "幽默") if t != request.tone] if styled else ["幽默"])
        if request.tone == "敬语" or request.tone == "亲切":
            tone = rng.choice(("幽默", "文艺"))
        return dataclasses.replace(request, tone=tone), Style(say, address=False if fixed and say == "您" else None)
    if flaw == "taboo":
        bare = None if request.relation else False  # next to the group's address or wish, the text alone would show the flaw
        return request, Style(topic=rng.choice(taboo_topics(request)), address=bare, group=bare)
    return _other_form(rng, request, flaw)


def _toneless(request: Request) -> Request:
    return request if request.tone in ("幽默", "文艺") else dataclasses.replace(request, tone="亲切")


def _other_recipient(rng: random.Random, request: Request, flaw: str, say: str) -> tuple[Request, Style]:
    if flaw == "wrong_recipient":
        others = other_recipients(request)
        alike = [r for r in others if pronoun(r, request.tone) == say] or others
        other = rng.choice(alike)
        group = None if group_of(other) == group_of(request.recipient) else False
        return dataclasses.replace(request, recipient=other), Style(say, address=True, group=group)
    others = other_recipients(request, same_group=False)
    alike = [r for r in others if pronoun(r, request.tone) == say] or others
    return dataclasses.replace(request, recipient=rng.choice(alike)), Style(say, address=False, group=True)


def _other_form(rng: random.Random, request: Request, flaw: str) -> tuple[Request, Style]:
    """The same request with another constraint."""
    kind, value = request.constraint or ("", 0)
    if flaw == "too_short":
        constraint = ("chars", 8) if rng.random() < 0.7 else ("four", 4)
    elif flaw == "wrong_count":
        other = 3 if value == 2 else 2
        constraint = ("items", other) if not kind or (rng.random() < 0.35) else None
    elif kind == "chars" and rng.random() < 0.6:
        constraint = ("chars", 24 - value) if rng.random() < 0.6 else ("four", 4)
    else:
        constraint = None
    return dataclasses.replace(request, constraint=constraint), Style(long=kind == "max_chars" and value > 20)


def _edit_plan(rng: random.Random, request: Request, plan: Plan, flaw: str) -> Plan:
    """The plan with a flaw of the text itself, for flaws that consist of clauses."""
    say, row = pronoun(request.recipient, request.tone), OCCASIONS[request.occasion]
    short = plan[0][0].kind == "four"
    pieces = [piece for item in plan for piece in item]
    body = [i for i, p in enumerate(pieces) if p.kind != "address"]
    swaps: dict[int, Piece] = {}
    if flaw == "cliche":
        lines = [c for c in CLICHES if not short or len(c) == 4]
        places = rng.sample(body, 2 if short or rng.random() < 0.4 else len(body))
        texts = rng.sample(lines, min(len(places), len(lines)))
        swaps = {i: Piece("cliche", speak(rng, t, say)) for i, t in zip(places, texts, strict=False)}
    elif flaw == "empty_template":
        spare = (*row.wishes, *row.openings)
        places = [i for i in body if pieces[i].kind == "image"]
        swaps = {i: Piece("wish", speak(rng, t, say)) for i, t in zip(places, rng.sample(spare, 3), strict=False)}
    elif flaw == "no_wish":
        places = [i for i in body if pieces[i].kind in ("wish", "group")]
        spare = [Piece("image", speak(rng, t, say)) for t in rng.sample(list(row.images.values()), 4)]
        swaps = dict(zip(places, spare, strict=False))
    elif flaw == "repetition":
        a, b = rng.sample(body, 2)
        if rng.random() < 0.5:
            return _rebuilt(plan, [*pieces, pieces[a]])
        swaps = {a: pieces[b]}
    elif flaw in ("advertising", "placeholder"):
        lines = ADVERTS if flaw == "advertising" else PLACEHOLDERS
        optional = [i for i in range(len(pieces)) if pieces[i].kind in ("address", "opening", "closing", "topic")]
        place = rng.choice(optional or body) if flaw == "placeholder" else rng.choice(body)
        swaps = {place: Piece(flaw, rng.choice(lines))}
    return _rebuilt(plan, [swaps.get(i, piece) for i, piece in enumerate(pieces)])


def _rebuilt(plan: Plan, pieces: list[Piece]) -> Plan:
    """`pieces` distributed over the items of `plan`; the last item gets the rest."""
    rest, items = list(pieces), []
    for item in plan:
        items.append(rest[: len(item)])
        rest = rest[len(item) :]
    items[-1] += rest
    return items


def _edit_text(rng: random.Random, request: Request, text: str, flaw: str) -> str:
    """The text with a flaw that breaks its clauses."""
    if flaw == "unfinished":
        counted = request.constraint and request.constraint[0] == "chars"
        return text[: -1 if counted else -rng.randint(2, 6)]
    if flaw != "garbled":
        return text
    spans, start = [], 0
    for i, char in enumerate(text):
        if char in "，。！":
            spans.append((start, i))
            start = i + 1
    start, end = rng.choice(spans)
    chars = list(text[start:end])
    first = 2 if "".join(chars[:2]) in ("1.", "2.", "3.") else 0
    moved = chars[first:]
    rng.shuffle(moved)
    if count_chars("".join(moved)) < 3 or canonical("".join(moved)) in roles():
        return text
    return text[:start] + "".join(chars[:first] + moved) + text[end:]
