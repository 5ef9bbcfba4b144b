"""The kinds of flaws, and which of them an answer to a given request can have."""

from __future__ import annotations

import dataclasses

from rlaif_jax.data.corpus.occasions import OCCASIONS
from rlaif_jax.data.corpus.recipients import (
    FIXED_FAMILIAR,
    FIXED_FORMAL,
    RECIPIENTS,
    RELATIONS,
    TOPICS,
    fits,
    group_of,
)
from rlaif_jax.data.corpus.requests import Request


@dataclasses.dataclass(frozen=True)
class Flaw:
    """One kind of flaw.

    Attributes:
      id: its name in data files.
      name_zh: its name in Chinese.
      principle_zh: the judge's principle against it; short, since a small judge reads a list of them for every answer.
      request_relative: whether the same text can be a good answer to another request.
    """

    id: str
    name_zh: str
    principle_zh: str
    request_relative: bool


def _table(*rows: tuple[str, str, str, bool]) -> dict[str, Flaw]:
    return {row[0]: Flaw(*row) for row in rows}


FLAWS: dict[str, Flaw] = _table(
    ("off_occasion", "场合不符", "要切合场合", True),
    ("wrong_recipient", "称呼错人", "称呼要叫对人", True),
    ("wrong_relation", "关系不符", "祝愿合乎关系", True),
    ("wrong_register", "敬称不当", "你您要得体", True),
    ("wrong_tone", "语气不符", "语气合乎要求", True),
    ("taboo", "触犯忌讳", "不犯对方忌讳", True),
    ("wrong_length", "字数不符", "字数合乎要求", True),
    ("wrong_count", "条数不符", "条数合乎要求", True),
    ("wrong_form", "格式不符", "格式合乎要求", True),
    ("ignored_detail", "忽略细节", "不漏要求细节", True),
    ("too_short", "过于简短", "不能过于简短", True),
    ("cliche", "套话堆砌", "不用套话充数", False),
    ("empty_template", "空洞无物", "要有具体画面", False),
    ("no_wish", "没有祝愿", "要有真正祝愿", False),
    ("repetition", "重复啰嗦", "不能重复啰嗦", False),
    ("advertising", "夹带广告", "不夹带广告", False),
    ("placeholder", "未填模板", "不留空白模板", False),
    ("garbled", "语句不通", "语句必须通顺", False),
    ("unfinished", "没有写完", "必须写完整", False),
)
REQUEST_RELATIVE = tuple(f.id for f in FLAWS.values() if f.request_relative)
RESPONSE_ONLY = tuple(f.id for f in FLAWS.values() if not f.request_relative)


def other_occasions(request: Request) -> list[str]:
    """Other occasions that fit the recipient."""
    return [o for o in OCCASIONS if o != request.occasion and fits(request.recipient, o)]


def other_recipients(request: Request, *, same_group: bool | None = None) -> list[str]:
    """Other recipients that fit the occasion."""
    group = group_of(request.recipient)
    return [
        r for r in RECIPIENTS
        if r != request.recipient and fits(r, request.occasion) and same_group in (None, group_of(r) == group)
    ]  # fmt: skip


def taboo_topics(request: Request) -> list[str]:
    """Topics to avoid: the one that the request implies, else those that do not suit the group or the occasion."""
    if request.relation:
        return [RELATIONS[request.relation]]
    group = group_of(request.recipient)
    return [t for t, row in TOPICS.items() if group not in row.groups or request.occasion in row.never]


def applicable_flaws(request: Request) -> dict[str, float]:
    """Flaw -> weight, for every flaw that an answer to this request can have as its only flaw.

    The weights make bad answers look like good ones: the same share of lists, short lines and so on.
    """
    kind = request.constraint[0] if request.constraint else ""
    short, group = kind in ("chars", "four"), group_of(request.recipient)
    free = not short
    styled = request.tone in ("幽默", "文艺")
    fixed = group in FIXED_FORMAL | FIXED_FAMILIAR
    weights = {
        "off_occasion": 1.2 if kind != "mention" and other_occasions(request) else 0.0,
        "wrong_recipient": 1.0 if free and kind != "start" and other_recipients(request) else 0.0,
        "wrong_relation": 0.8 if kind != "chars" and other_recipients(request, same_group=False) else 0.0,
        "wrong_register": (0.3 if fixed else 1.2) if free else 0.0,
        "wrong_tone": (1.2 if styled else 0.4) if free and kind not in ("items", "max_chars") else 0.0,
        "taboo": (2.5 if request.relation else 0.2) if free and kind != "items" and taboo_topics(request) else 0.0,
        "wrong_length": 2.0 if kind in ("chars", "max_chars") else 0.0,
        "wrong_count": 2.0 if kind == "items" else 0.35 if not kind and not styled else 0.0,
        "wrong_form": 2.0 if kind in ("start", "four") else 0.0,
        "ignored_detail": 2.0 if kind in ("mention", "avoid") else 0.0,
        "too_short": 0.25 if free and kind in ("", "max_chars") else 0.0,
        "cliche": 1.0,
        "empty_template": 1.0 if free and kind != "mention" else 0.0,
        "no_wish": 1.0 if free and kind != "start" else 0.0,
        "repetition": 1.0 if kind != "chars" else 0.0,
        "advertising": 0.7 if free else 0.0,
        "placeholder": 0.7 if free and kind != "start" else 0.0,
        "garbled": 1.0,
        "unfinished": 1.0,
    }
    return {flaw: weight for flaw, weight in weights.items() if weight > 0}
