"""The kinds of flaw that an answer can have, and which of them a given request allows."""

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
      principle_zh: the judging principle that forbids it, one sentence.
      request_relative: whether the same text would do for another request.
    """

    id: str
    name_zh: str
    principle_zh: str
    request_relative: bool


def _table(*rows: tuple[str, str, str, bool]) -> dict[str, Flaw]:
    return {row[0]: Flaw(*row) for row in rows}


FLAWS: dict[str, Flaw] = _table(
    ("off_occasion", "场合不符", "祝福的内容必须属于请求所说的节日或事件，不能写成别的场合。", True),
    ("wrong_recipient", "称呼错人", "称呼必须是请求里的那个人，不能叫成别人。", True),
    ("wrong_relation", "关系不符", "祝愿要合乎与对方的关系，不能把对恋人、孩子或客户的话说给别人。", True),
    ("wrong_register", "敬称不当", "对长辈、老师、领导和客户称“您”，对其他人称“你”，请求点明称呼的以请求为准。", True),
    ("wrong_tone", "语气不符", "请求要幽默就要有趣，要文艺就要有诗意，没要幽默时不开玩笑。", True),
    ("taboo", "触犯忌讳", "不说让对方难堪的话，例如对减肥的人劝吃、对戒酒的人劝酒、对失业的人说升职。", True),
    ("wrong_length", "字数不符", "请求规定了字数就必须遵守，没有规定时也不能冗长。", True),
    ("wrong_count", "条数不符", "请求要几条就写几条，没要多条时只写一条。", True),
    ("wrong_form", "格式不符", "请求规定了开头的字或每句四个字，就必须照办。", True),
    ("ignored_detail", "忽略细节", "请求要提到的事物必须提到，请求不许用的字不能出现。", True),
    ("too_short", "过于简短", "除非请求规定了八个字、十六个字或四字一句，否则只有几个四字词的祝福太单薄。", True),
    ("cliche", "套话堆砌", "不能只用“万事如意”“心想事成”这类套话充数。", False),
    ("empty_template", "空洞无物", "祝福里要有属于这个场合的具体画面，不能空泛。", False),
    ("no_wish", "没有祝愿", "祝福里必须有一句真正的祝愿，不能只写景。", False),
    ("repetition", "重复啰嗦", "同一句话不能说两遍。", False),
    ("advertising", "夹带广告", "祝福里不能夹带广告、链接或促销。", False),
    ("placeholder", "未填模板", "不能留下“某某”之类没有填写的占位词。", False),
    ("garbled", "语句不通", "每个分句都要通顺成句，标点正确，不能是词语的堆砌。", False),
    ("unfinished", "没有写完", "祝福必须写完整，并以句号或感叹号结束。", False),
)
REQUEST_RELATIVE = tuple(f.id for f in FLAWS.values() if f.request_relative)
RESPONSE_ONLY = tuple(f.id for f in FLAWS.values() if not f.request_relative)


def other_occasions(request: Request) -> list[str]:
    """Other occasions on which one greets the recipient."""
    return [o for o in OCCASIONS if o != request.occasion and fits(request.recipient, o)]


def other_recipients(request: Request, *, same_group: bool | None = None) -> list[str]:
    """Other recipients whom one greets on the occasion."""
    group = group_of(request.recipient)
    return [
        r for r in RECIPIENTS
        if r != request.recipient and fits(r, request.occasion) and same_group in (None, group_of(r) == group)
    ]  # fmt: skip


def taboo_topics(request: Request) -> list[str]:
    """Touchy topics that must not be raised: what the request tells of, else what does not suit group or occasion."""
    if request.relation:
        return [RELATIONS[request.relation]]
    group = group_of(request.recipient)
    return [t for t, row in TOPICS.items() if group not in row.groups or request.occasion in row.never]


def applicable_flaws(request: Request) -> dict[str, float]:
    """Flaw -> weight for the flaws that an answer to this request can have while being right in all else.

    The weights make the texts of bad answers look like those of good ones: as many lists, short lines and so on.
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
