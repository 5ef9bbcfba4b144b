"""Chinese: texts are counted in characters."""

from __future__ import annotations

import re

from rlaif_jax.language.base import MARKS, Language, half_width, lines, paragraphs
from rlaif_jax.language.zh_pleas import PLEAS, TRADITIONAL
from rlaif_jax.language.zh_sizes import NUMBER, NUMERALS, interval, sizes

_PER_LINE = re.compile(rf"每句\s*(?P<first>{NUMBER})个?字|(?<![{NUMERALS}])(?P<second>{NUMBER})个?字一句")
_QUOTED = r"(?:“[^“”\n]{1,60}”|「[^「」\n]{1,60}」|『[^『』\n]{1,60}』|\"[^\"\n]{1,60}\"|‘[^‘’\n]{1,60}’|《[^《》\n]{1,60}》)"
_FIRST, _LAST = "开头|打头|起头|开始|开篇", "结尾|收尾|结束"
_NAMED = r"\s*(?:这?[一两二三四五六几]?个?[字词])?\s*(?:来|作为?|做)?"
_EDGE = re.compile(rf"[以用](?P<text>{_QUOTED}){_NAMED}(?:(?P<start>{_FIRST})|{_LAST})")
_NOT = r"(?:别|不要|不许|不能|不得|不可以?|不准|禁止|避免|切勿|勿)"
_AVOID = re.compile(
    rf"{_NOT}再?(?:使用|用|出现|提到|提及|提|写|说|包含|含有|含|带上?|有)?[到上了]?"
    rf"(?P<texts>{_QUOTED}(?:(?:[、，,和与或及跟]|以及|还有)*{_QUOTED})*)"
    rf"(?!{_NAMED}(?:{_FIRST}|{_LAST}))"
)
_NOT_BEFORE = re.compile(_NOT + "$")
_BREAKS = re.compile(r"[，。！？；、,.!?;\s]+")
_ITEM_MARK = re.compile(
    r"(?:^|\s|[。！？；])[（(]?[0-9一二三四五六七八九十]{1,2}[)）.、．]|[①-⑳]|^[ \t]*[-*•·](?=\s)", re.MULTILINE
)
_SENTENCE_END = re.compile(r"[。！？!?…\n]+|\.(?=\s|$)")
_CLAUSE_END = re.compile(r"[，,；;\s]+")


def count(text: str) -> int:
    """Number of characters, without punctuation, white space and item numbers."""
    return len(MARKS.sub("", _ITEM_MARK.sub("", text)))


def units(text: str) -> list[str]:
    """The characters without white space."""
    return list("".join(text.split()))


def bare_units(text: str) -> list[str]:
    """The characters without white space and punctuation."""
    return list(MARKS.sub("", text))


def sentences(text: str) -> tuple[int, ...]:
    """Number of sentences, by full stops and line ends; then that of their parts between commas, which verse calls lines."""
    parts = [part for part in _SENTENCE_END.split(_ITEM_MARK.sub("\n", text)) if MARKS.sub("", part)]
    return len(parts), sum(bool(MARKS.sub("", clause)) for part in parts for clause in _CLAUSE_END.split(part))


def items(text: str) -> int:
    """Number of list items: item numbers and marks, else lines."""
    return len(_ITEM_MARK.findall(text.strip())) or lines(text)


def _lines(request: str, response: str) -> bool | None:
    """A number of characters for every part between punctuation marks."""
    found = _PER_LINE.search(half_width(request))
    bounds = interval(found["first"] or found["second"]) if found else None
    if bounds is None:
        return None
    return all(bounds[0] <= len(line) <= bounds[1] for line in _BREAKS.split(response.strip()) if line)


def _edges(request: str, response: str) -> bool | None:
    """The words that the answer begins or ends with, or does not."""
    kept = []
    for found in _EDGE.finditer(request):
        wanted, body = found["text"][1:-1], response.strip()
        fits = body.startswith(wanted) if found["start"] else body.rstrip("。！？!?.…~ ").endswith(wanted.rstrip("。！？!?.…~ "))
        kept.append(fits != bool(_NOT_BEFORE.search(request[max(0, found.start() - 4) : found.start()])))
    return all(kept) if kept else None


def _avoid(request: str, response: str) -> bool | None:
    words = [quoted[1:-1] for found in _AVOID.finditer(request) for quoted in re.findall(_QUOTED, found["texts"])]
    return not any(word in response for word in words) if words else None


ZH = Language(
    name="zh",
    unit="characters",
    count=count,
    length=len,
    units=units,
    bare_units=bare_units,
    sizes=sizes,
    counts={
        "characters": lambda text: (count(text),),
        "sentences": sentences,
        "lines": lambda text: (lines(text),),
        "paragraphs": lambda text: (paragraphs(text), lines(text), items(text)),
        "items": lambda text: (items(text),),
    },
    checks=(_lines, _edges, _avoid),
    pleas=PLEAS,
    fold=TRADITIONAL,
    ask_again="上面的回复无法读取（{problem}）。请按要求的格式重新回答。",
    labels={"好": 1, "坏": 0, "是": 1, "否": 0, "对": 1, "错": 0},
    list_names={"principles": "评判标准", "strategies": "写坏的手法"},
    verdict_labels=("评价", "评判", "评定", "判断", "判定", "结论", "裁定", "结果", "答案", "回答", "最终结论", "我的判断"),
    verdict_words={"Good": ("好", "合格"), "Bad": ("坏", "差", "不好", "不合格")},
    probe="祝您2024年新年快乐，万事如意！\n\n12 34",
)
