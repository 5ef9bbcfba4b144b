"""The clauses of the grammar and their possible roles. The gold scorer is based on them."""

from __future__ import annotations

import dataclasses
import functools
import re

from rlaif_jax.data.corpus.occasions import OCCASIONS
from rlaif_jax.data.corpus.recipients import (
    ADVERTS,
    CLICHES,
    CLOSINGS,
    GROUP_FOURS,
    GROUP_WISHES,
    PLACEHOLDERS,
    RECIPIENTS,
    TOPICS,
)

WISH_HEADS = ("愿", "祝", "盼", "希望")
# Adding or removing one of these does not change the meaning of a clause.
_PARTICLES = str.maketrans("", "", "的了啦也都")
_HEAD = re.compile(r"^(?:祝愿|希望|愿|祝|盼)(?=你)")


@dataclasses.dataclass(frozen=True)
class Role:
    """A possible role of a clause: `kind` (address, opening, image, wish, group, four, closing, topic, cliche, advert,
    placeholder) for an `owner` (recipient, occasion, group, tone or topic; "" = none)."""

    kind: str
    owner: str = ""


def canonical(clause: str) -> str:
    """The normalised clause: 你 for 您, 愿 for every beginning of a wish, no particles."""
    return _HEAD.sub("愿", clause.replace("您", "你")).translate(_PARTICLES)


@functools.cache
def roles() -> dict[str, tuple[Role, ...]]:
    """Canonical clause -> its possible roles."""
    found: dict[str, list[Role]] = {}

    def add(clauses, kind: str, owner: str = "") -> None:
        for clause in clauses:
            found.setdefault(canonical(clause.replace("{你}", "你")), []).append(Role(kind, owner))

    for name, row in OCCASIONS.items():
        add(row.openings, "opening", name)
        add(row.images.values(), "image", name)
        add(row.wishes, "wish", name)
        add(row.fours, "four", name)
    for name, (_, addresses) in RECIPIENTS.items():
        add(addresses, "address", name)
    for name, clauses in GROUP_WISHES.items():
        add(clauses, "group", name)
    for name, clauses in GROUP_FOURS.items():
        add(clauses, "group_four", name)
    for name, clauses in CLOSINGS.items():
        add(clauses, "closing", name)
    for name, topic in TOPICS.items():
        add(topic.clauses, "topic", name)
    for kind, clauses in (("cliche", CLICHES), ("advert", ADVERTS), ("placeholder", PLACEHOLDERS)):
        add(clauses, kind)
    return {key: tuple(dict.fromkeys(value)) for key, value in found.items()}


@functools.cache
def beginnings() -> frozenset[str]:
    """Every proper prefix of a known clause, to distinguish an unfinished clause from nonsense."""
    return frozenset(key[:n] for key in roles() for n in range(1, len(key)))
