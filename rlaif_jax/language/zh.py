"""Chinese: texts are counted in characters."""

from __future__ import annotations

import re

from rlaif_jax.language.base import MARKS, Language

_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"两": 2}
_NUMBER = r"([0-9]{1,3}|[一二两三四五六七八九十]{1,3})"
_AT_MOST = re.compile(rf"(?:不超过|最多|至多){_NUMBER}个?字|{_NUMBER}个?字(?:以内|之内)")
_EXACTLY = re.compile(rf"(?<!每句)(?<![一二两三四五六七八九十0-9]){_NUMBER}个字(?!以内|之内|一句)|正好{_NUMBER}字")
_LINES = re.compile(rf"每句{_NUMBER}个?字|{_NUMBER}个?字一句")
_ITEMS = re.compile(rf"{_NUMBER}[条句段则](?![话])")
_START = re.compile(r"[以用]“([^”]+)”字?开头")
_AVOID = re.compile(r"(?:别出现|不要用|不许用|不要出现)“([^”]+)”")
_BREAKS = re.compile(r"[，。！？；、,.!?;\s]+")
_ITEM_MARK = re.compile(r"(?:^|\s|[。！？；])[（(]?[0-9一二三四五六七八九十]{1,2}[)）.、．]")


def number(text: str) -> int:
    """A number up to 99 in digits or Chinese numerals: "16", "十六", "两"."""
    if text.isdigit():
        return int(text)
    tens, ten, ones = text.rpartition("十")
    if not ten:
        return _DIGITS[text]
    return 10 * (_DIGITS[tens] if tens else 1) + (_DIGITS[ones] if ones else 0)


def count(text: str) -> int:
    """Number of characters, without punctuation, white space and item numbers."""
    return len(MARKS.sub("", _ITEM_MARK.sub("", text)))


def units(text: str) -> list[str]:
    """The characters without white space."""
    return list("".join(text.split()))


def bare_units(text: str) -> list[str]:
    """The characters without white space and punctuation."""
    return list(MARKS.sub("", text))


def _found(match: re.Match) -> int:
    return number(next(g for g in match.groups() if g))


def _length(request: str, response: str) -> bool | None:
    if found := _AT_MOST.search(request):
        return count(response) <= _found(found)
    found = _EXACTLY.search(request)
    return count(response) == _found(found) if found else None


def _lines(request: str, response: str) -> bool | None:
    found = _LINES.search(request)
    if not found:
        return None
    return all(len(line) == _found(found) for line in _BREAKS.split(response.strip()) if line)


def _items(request: str, response: str) -> bool | None:
    found = _ITEMS.search(request)
    if not found or (wanted := _found(found)) < 2:
        return None
    return len(_ITEM_MARK.findall(response.strip())) == wanted


def _start(request: str, response: str) -> bool | None:
    found = _START.search(request)
    return response.strip().startswith(found.group(1)) if found else None


def _avoid(request: str, response: str) -> bool | None:
    found = _AVOID.search(request)
    return found.group(1) not in response.strip() if found else None


ZH = Language(
    name="zh",
    unit="characters",
    count=count,
    length=len,
    units=units,
    bare_units=bare_units,
    checks=(_length, _lines, _items, _start, _avoid),
    pleas=(
        r"[^，。！？；\n]*(?:忽略|无视|不要管|别管)[^。！？\n]*(?:标准|规则|指令|要求|提示)[^。！？\n]*[。！？]?",
        r"[^，。！？；\n]*(?:输出|回答|判为|判|打|给)\s*[“\"']?(?:good|1\s*分|满分|合格|通过)[^，。！？；\n]*[，。！？；]?",
    ),
    ask_again="上面的回复无法读取（{problem}）。请按要求的格式重新回答。",
    list_names={"principles": "评判标准", "strategies": "写坏的手法"},
    pauses="：，。",
    probe="祝您2024年新年快乐，万事如意！\n\n12 34",
)
