"""Requests: occasion, recipient, tone and constraint, and many ways to phrase them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from typing import Any

from rlaif_jax.data.corpus.occasions import OCCASIONS
from rlaif_jax.data.corpus.recipients import RECIPIENTS, TOPICS, fits, group_of, tones_of

# {谁} the recipient, {节} the occasion, {量} "一条", "两条" or nothing, {事} what happens to the recipient
TEMPLATES: dict[str, tuple[str, ...]] = {
    "any": (
        "给{谁}写{量}{节}祝福", "写{量}{节}祝福给{谁}", "{节}祝福，送给{谁}，{量}", "帮我写{量}给{谁}的{节}祝福",
        "来{量}{节}祝福，给{谁}的", "想对{谁}说{量}{节}祝福", "请为{谁}写{量}{节}贺词", "{量}{节}祝福语，对象是{谁}",
        "替我给{谁}发{量}{节}祝福", "求{量}发给{谁}的{节}祝福", "{谁}，{节}，{量}祝福", "拟{量}{节}祝福，收信人是{谁}",
        "要{量}给{谁}的{节}贺词", "怎么祝福{谁}？{节}，{量}", "麻烦写{量}{节}祝福，对{谁}说",
    ),
    "festival": (
        "{节}到了，给{谁}写{量}祝福", "{节}快到了，祝福{谁}，{量}", "{节}怎么祝福{谁}？写{量}",
        "{节}想问候{谁}，来{量}",
        "明天{节}，给{谁}{量}祝福", "{节}发给{谁}的话，{量}", "{节}贺卡写给{谁}，{量}", "今天{节}，对{谁}说{量}祝福",
    ),
    "event": (
        "{谁}{事}，写{量}祝福", "{谁}{事}，帮我写{量}贺词", "{谁}{事}，该说什么，写{量}", "{谁}{事}，来{量}祝福",
        "听说{谁}{事}，写{量}祝福", "{谁}{事}，贺卡上写{量}", "{谁}{事}，想送{量}祝福",
    ),
}  # fmt: skip
TONE_WORDS: dict[str, tuple[str, ...]] = {
    "敬语": ("用敬语", "用“您”称呼", "正式一点"),
    "亲切": ("用“你”称呼", "亲切一点", "别用敬语"),
    "幽默": ("幽默一点", "逗乐些", "要搞笑"),
    "文艺": ("文艺一点", "有诗意", "写得雅些"),
}
NUMERALS = {2: "两", 3: "三", 8: "八", 16: "十六", 20: "二十", 25: "二十五", 30: "三十"}
STARTS = ("愿", "祝", "盼")
AVOIDS = ("快乐", "愿", "祝")
# kind -> (weight, possible values; those of "mention" come from the occasion)
CONSTRAINTS: dict[str, tuple[float, tuple[Any, ...]]] = {
    "mention": (0.26, ()),
    "max_chars": (0.18, (20, 25, 30)),
    "items": (0.18, (2, 2, 2, 3)),
    "start": (0.12, STARTS),
    "avoid": (0.10, AVOIDS),
    "chars": (0.10, (8, 8, 16)),
    "four": (0.06, (4,)),
}
CONSTRAINT_WORDS: dict[str, tuple[str, ...]] = {
    "mention": ("提到{值}", "要有{值}", "带上{值}"),
    "max_chars": ("不超过{值}个字", "{值}字以内", "最多{值}字"),
    "start": ("以“{值}”开头", "用“{值}”字开头"),
    "avoid": ("别出现“{值}”", "不要用“{值}”字"),
    "chars": ("只要{值}个字", "正好{值}字", "{值}个字"),
    "four": ("四个字一句", "每句四个字"),
}
# These constraints fix the form, so the request has no tone.
_FORMS = frozenset({"chars", "four", "items", "max_chars"})


@dataclasses.dataclass(frozen=True)
class Request:
    """One request for a greeting.

    Attributes:
      text: the request in Chinese.
      occasion: a key of `OCCASIONS`.
      recipient: a key of `RECIPIENTS`.
      relation: a fact about the recipient ("正在减肥的"), a key of `RELATIONS`, or "".
      tone: "" or one of 敬语, 亲切, 幽默, 文艺.
      constraint: (kind, value) with a kind of `CONSTRAINTS`, or None.
    """

    text: str
    occasion: str
    recipient: str
    relation: str = ""
    tone: str = ""
    constraint: tuple[str, str | int] | None = None

    def to_meta(self) -> dict[str, Any]:
        """The fields as a JSON-able dict."""
        meta = dataclasses.asdict(self)
        meta["constraint"] = list(self.constraint) if self.constraint else None
        return meta

    @classmethod
    def is_meta(cls, meta: Mapping[str, Any]) -> bool:
        """Whether a row's other columns are the dict of `to_meta`, and not columns of a user's that share a name."""
        return all(f.name in meta for f in dataclasses.fields(cls))

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Request:
        """The request from the dict of `to_meta`; other keys are ignored."""
        values = {f.name: meta[f.name] for f in dataclasses.fields(cls)}
        if values["constraint"] is not None:
            kind, value = values["constraint"]
            values["constraint"] = (kind, value)
        return cls(**values)


def relation_fits(relation: str, recipient: str, occasion: str) -> bool:
    """Whether this fact fits the recipient and the occasion."""
    topic = next(t for t in TOPICS.values() if t.relation == relation)
    return group_of(recipient) in topic.told_of and occasion not in topic.clash


def sample_request(rng: random.Random) -> Request:
    """A random, sensible request; about half have a constraint."""
    occasion = rng.choice(list(OCCASIONS))
    recipient = rng.choice([r for r in RECIPIENTS if fits(r, occasion)])
    constraint = sample_constraint(rng, occasion) if rng.random() < 0.5 else None
    tone = relation = ""
    roomy = constraint is None or constraint[0] not in _FORMS
    if roomy and rng.random() < 0.55:
        tone = rng.choice(tones_of(recipient)[1:])
    told = [t.relation for t in TOPICS.values() if relation_fits(t.relation, recipient, occasion)]
    if told and not (constraint and (tone or constraint[0] in ("chars", "four"))) and rng.random() < 0.45:
        relation = rng.choice(told)
    bare = Request("", occasion, recipient, relation, tone, constraint)
    return dataclasses.replace(bare, text=phrase(rng, bare))


def sample_constraint(rng: random.Random, occasion: str) -> tuple[str, str | int]:
    """A random constraint, with the weights of `CONSTRAINTS`."""
    kinds = list(CONSTRAINTS)
    kind = rng.choices(kinds, [CONSTRAINTS[k][0] for k in kinds])[0]
    return kind, rng.choice(CONSTRAINTS[kind][1] or list(OCCASIONS[occasion].images))


def phrase(rng: random.Random, request: Request) -> str:
    """A random phrasing of the request (its `text` is not read)."""
    event = OCCASIONS[request.occasion].event
    template = rng.choice(TEMPLATES["any"] + TEMPLATES["event" if event else "festival"])
    parts, amount = [], rng.choice(("一条", "一句", "一段")) if rng.random() < 0.5 else "一句"
    kind, value = request.constraint or ("", 0)
    if kind == "items":
        amount = NUMERALS[value] + "条"
    elif kind:
        shown = NUMERALS[value] if isinstance(value, int) and value in NUMERALS else str(value)
        parts.append(rng.choice(CONSTRAINT_WORDS[kind]).replace("{值}", shown))
    if request.tone:
        parts.append(rng.choice(TONE_WORDS[request.tone]))
    rng.shuffle(parts)
    slots = {"{谁}": request.relation + request.recipient, "{节}": request.occasion, "{量}": amount, "{事}": event}
    for slot, words in slots.items():
        template = template.replace(slot, words)
    return "，".join([template, *parts])
