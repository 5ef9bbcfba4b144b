"""Answers: makes a plan of pieces for a request, and renders it as text."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

from rlaif_jax.data.corpus.gold import closings_for, count_chars, is_excellent, may_say
from rlaif_jax.data.corpus.occasions import OCCASIONS
from rlaif_jax.data.corpus.phrases import WISH_HEADS
from rlaif_jax.data.corpus.recipients import CLICHES, CLOSINGS, GROUP_FOURS, GROUP_WISHES, RECIPIENTS, TOPICS, pronoun
from rlaif_jax.data.corpus.requests import Request

TRIES = 400
LONGEST = 44  # in Chinese characters, of an answer that is not a list
_HEAD_WEIGHTS = (5, 2, 2, 1)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A clause of a plan and its kind: address, opening, image, wish, group, topic, closing, four, cliche ..."""

    kind: str
    text: str


Plan = list[list[Piece]]  # a list of items, each a list of pieces; an answer that is not a list has one item


@dataclasses.dataclass(frozen=True)
class Style:
    """Changes to a plan that make its answer flawed.

    Attributes:
      say: 你 or 您; "" = as the request requires.
      address: whether the recipient is addressed; None = as usual.
      group: whether there is a wish for the recipient's group; None = as usual.
      topic: a sensitive topic to include; "" = none in particular.
      long: use many parts, to exceed a length limit.
    """

    say: str = ""
    address: bool | None = None
    group: bool | None = None
    topic: str = ""
    long: bool = False


def good_response(rng: random.Random, request: Request) -> str:
    """A text that has no flaw as an answer to the request.

    Raises:
      ValueError: the request has fields that no answer can satisfy (`sample_request` never returns such a request).
    """
    for _ in range(TRIES):
        text = render(rng, make_plan(rng, request, Style()))
        if acceptable_size(text) and is_excellent(request, text):
            return text
    raise ValueError(f"no good answer was found for the request {request}")


def acceptable_size(text: str) -> bool:
    """Whether the text is within the size limits of the corpus."""
    return count_chars(text) <= LONGEST or text.startswith("1")


def make_plan(rng: random.Random, request: Request, style: Style) -> Plan:
    """A plan in the requested form. The caller must check the other parts of the request."""
    kind, value = request.constraint or ("", 0)
    if kind in ("chars", "four"):
        return [_short(rng, request, value // 4 if kind == "chars" else rng.choice((3, 4, 4)))]
    if kind == "items":
        return _listed(rng, request, style, int(value))
    return [_free(rng, request, style)]


def render(rng: random.Random, plan: Plan) -> str:
    """The text of a plan. Every clause is followed by one punctuation mark; items are numbered."""
    texts = []
    for pieces in plan:
        end = "。" if len(plan) > 1 or rng.random() < 0.75 else "！"
        text = ""
        for i, piece in enumerate(pieces):
            # Before the end, "！" is only used after a leading opening, so that no good text is the beginning of another.
            early = piece.kind == "opening" and all(p.kind == "address" for p in pieces[:i])
            text += piece.text
            text += end if i == len(pieces) - 1 else "！" if early and rng.random() < 0.6 else "，"
        texts.append(text)
    return texts[0] if len(texts) == 1 else "".join(f"{i}.{text}" for i, text in enumerate(texts, 1))


def speak(rng: random.Random, clause: str, say: str, head: str = "") -> str:
    """The clause with its pronoun. The beginning of a wish is random unless `head` is given."""
    if clause.startswith("愿{你}"):
        clause = (head or rng.choices(WISH_HEADS, _HEAD_WEIGHTS)[0]) + clause[1:]
    return clause.replace("{你}", say)


def _short(rng: random.Random, request: Request, lines: int) -> list[Piece]:
    own = rng.sample(OCCASIONS[request.occasion].fours, max(lines - rng.choice((1, 1, 2)), 1))
    group = rng.sample(GROUP_FOURS[RECIPIENTS[request.recipient][0]], lines - len(own))
    pieces = [Piece("four", text) for text in own + group]
    rng.shuffle(pieces)
    return pieces


def _listed(rng: random.Random, request: Request, style: Style, count: int) -> Plan:
    row, group = OCCASIONS[request.occasion], GROUP_WISHES[RECIPIENTS[request.recipient][0]]
    say = style.say or pronoun(request.recipient, request.tone)
    images = rng.sample(list(row.images.values()), count)
    wishes = rng.sample(row.wishes, count)
    with_group = rng.random() < 0.5 if style.group is None else style.group
    if with_group:
        wishes[rng.randrange(count)] = rng.choice(group)
    plan = [[Piece("image", i), Piece("wish", w)] for i, w in zip(images, wishes, strict=True)]
    for item in plan:
        if rng.random() < 0.3:
            item.reverse()
    if rng.random() < 0.4:
        plan[0].insert(0, Piece("opening", rng.choice(row.openings)))
    if rng.random() < 0.5 if style.address is None else style.address:
        plan[0].insert(0, Piece("address", rng.choice(RECIPIENTS[request.recipient][1])))
    return [[Piece(p.kind, speak(rng, p.text, say)) for p in item] for item in plan]


def _free(rng: random.Random, request: Request, style: Style) -> list[Piece]:
    row = OCCASIONS[request.occasion]
    kind, value = request.constraint or ("", 0)
    say = style.say or pronoun(request.recipient, request.tone)
    room = {20: 0.15, 25: 0.5}.get(value, 1.0) if kind == "max_chars" else 1.0

    def chance(p: float) -> bool:
        return rng.random() < (min(p * 2, 0.95) if style.long else p * room)

    images = [row.images[value]] if kind == "mention" and value in row.images else []
    spare = [image for image in row.images.values() if image not in images]
    images += rng.sample(spare, (not images) + (chance(0.12) and not style.long))
    body = [Piece("image", image) for image in images]
    wishes = _wishes(rng, request, style, chance(0.25))
    body = wishes + body if kind == "start" or rng.random() < 0.2 else body + wishes
    body += _extras(rng, request, style, chance)
    head = []
    if chance(0.72) if style.address is None else style.address:
        head.append(Piece("address", rng.choice(RECIPIENTS[request.recipient][1])))
    if chance(0.5):
        head.append(Piece("opening", rng.choice(row.openings)))
    if kind == "start":  # an opening or a wish comes first
        head = [p for p in head if p.kind == "opening"] if value == "祝" else []
    pieces = [Piece(p.kind, speak(rng, p.text, say)) for p in head + body]
    if kind == "start" and not pieces[0].text.startswith(value):
        first = body[0].text if not head else head[0].text
        pieces[0] = Piece(pieces[0].kind, speak(rng, first, say, head=str(value)))
    return pieces


def _wishes(rng: random.Random, request: Request, style: Style, both: bool) -> list[Piece]:
    own = Piece("wish", rng.choice(OCCASIONS[request.occasion].wishes))
    group = Piece("group", rng.choice(GROUP_WISHES[RECIPIENTS[request.recipient][0]]))
    if style.group is not None:
        return ([group] if not both else [own, group]) if style.group else [own]
    if both:
        return [own, group]
    return [group] if rng.random() < 0.25 else [own]


def _extras(rng: random.Random, request: Request, style: Style, chance: Callable[[float], bool]) -> list[Piece]:
    """A sensitive topic that suits this request, at most one stock phrase, and a closing in the tone."""
    pieces = []
    topics = [style.topic] if style.topic else [t for t in TOPICS if may_say(request, t)]
    if style.topic or (topics and chance(0.22)):
        pieces.append(Piece("topic", rng.choice(TOPICS[rng.choice(topics)].clauses)))
    if chance(0.06):
        pieces.append(Piece("cliche", rng.choice(CLICHES)))
    allowed = closings_for(request)
    if request.tone in ("幽默", "文艺"):
        pieces.append(Piece("closing", rng.choice(CLOSINGS[request.tone])))
    elif chance(0.35):
        pieces.append(Piece("closing", rng.choice(CLOSINGS[rng.choice(allowed)])))
    if rng.random() < 0.5:
        pieces.reverse()
    return pieces
