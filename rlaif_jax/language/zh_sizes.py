"""Sizes in Chinese requests: number phrases ("两三", "十几", "10-30"), relations ("至少", "以内") and units ("个字", "句")."""

from __future__ import annotations

import re

from rlaif_jax.language.base import MANY, Size, half_width

_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_PAIRS = {(3, 5): (3, 5), (3, 2): (2, 3)} | {(i, i + 1): (i, i + 1) for i in range(1, 9)}  # "三五", "三两", "七八"
_TEN = {"": 1, "十": 10, "百": 100, "千": 1000, "万": 10000}
_D = "[一二两三四五六七八九]"
_SECTION = re.compile(
    rf"(?:(?P<千>{_D}?)千)?(?:[零〇]?(?P<百>{_D}?)百)?(?:[零〇]?(?P<十>{_D}?)十)?(?:(?P<zero>[零〇])?(?P<one>{_D}))?"
)
_SPOKEN = re.compile(rf"(?P<head>.*?)(?P<first>{_D})(?P<second>{_D})(?P<scale>[十百千万]?)")
_FIGURES = re.compile(r"(?P<value>[0-9]+(?:\.[0-9]+)?)(?P<scale>[百千万]?)")

NUMERALS = "零〇一二两三四五六七八九十百千万几半俩仨"  # what numerals consist of
NUMBER = rf"(?:[0-9]{{1,7}}(?:\.[0-9]{{1,3}})?[百千万]?|[{NUMERALS}]{{1,12}})(?:\s*[多余来])?"
_UNITS = {
    "characters": r"(?P<measure>个)?\s*汉?字(?![母典幕体面条迹节眼符数谜画帖])",
    "sentences": r"个?句(?!号|话不离)(?:子|话)?",
    "paragraphs": r"个?自然段|段(?!感情|时[间光]|路|恋|旅|婚|经历|缘|故事|往事|岁月)",
    "lines": r"行(?!业|李|程|泪|眼泪|白鹭)",
    "items": r"[条则](?!腿|狗|鱼|路|裤|河|街|龙|命|新闻|蛇|船|毛巾|围巾|领带|项链|裙|烟|线|道)",
}
_UNIT = "|".join(f"(?P<{name}>{pattern})" for name, pattern in _UNITS.items())
_SIZE = re.compile(
    rf"(?<![{NUMERALS}0-9.])(?:(?<=字数)|(?<!数))(?P<low>{NUMBER})\s*(?:(?:个?[字句条则段行])?\s*(?P<joint>[-—–~]{{1,2}}|到|至|或者?)\s*(?P<high>{NUMBER})\s*)?(?:{_UNIT})"
)
_WITHOUT_UNIT = re.compile(  # "字数不超过20": the unit is in front
    rf"(字数(?:要求|限制|控制|保持|请|要|应|须|大约|大概|约)*(?:在|为|是|于|[：:])?\s*[^\s，。；！？,;!?0-9{NUMERALS}]{{0,4}}"
    rf"(?:{NUMBER}\s*(?:[-—–~]{{1,2}}|到|至)\s*)?{NUMBER})(?![{NUMERALS}0-9.]|\s*(?:个|汉?字|[-—–~到至条句段则行]))"
)
_NOT = r"(?:不|别|勿|莫|未|没)(?:要|能|得|可以?|许|准|应该?|该|宜|用)?"
_VERBS = r"\s*(?:要|得|需要?|有|写|用|来|给|发|够|达到?|到|在|为|是|控制在|保持在|[：:]|\s){0,3}$"
# What stands before a number, each with the bounds that it makes of low and high.
_BEFORE = (
    (
        "most",
        rf"(?:{_NOT}(?:超过|超出|多于|高于|大于|长于|多过)|至多|最多|顶多|最长|上限|小于等于|≤|<=|(?<![不无有])限(?:制在?|定)?)",
    ),
    ("least", rf"(?:{_NOT}(?:少于|低于|小于|短于|下于?|少过)|至少|最少|最短|起码|少说|下限|大于等于|≥|>=)"),
    ("fewer", r"(?:少于|低于|小于|短于|不到|不足|不满|<|＜)"),
    ("more", r"(?:超过|超出|多于|高于|大于|长于|不止|不只|>|＞)"),
    ("exact", r"(?:正好|恰好|刚好|整整|只要|只用|只能|只|仅|字数|一共|总共|共)"),
)
_BEFORE_PATTERNS = tuple((name, re.compile(words + _VERBS)) for name, words in _BEFORE)
_AFTER_PATTERNS = (
    ("about", re.compile(r"\s*(?:左右|上下|前后|出头|开外|光景|附近|的样子)")),
    ("most", re.compile(r"\s*(?:或|及|和)?(?:以内|之内|内(?!容)|以下|之下|为限|封顶|更少)")),
    ("least", re.compile(r"\s*(?:或|及|和)?(?:以上|之上|往上|起(?![码来承名])|更多)")),
)
_ABOUT = re.compile(r"(?:大约|约|大概|差不多|将近|接近|近|左右|可能|也许)" + _VERBS)
# It is not the answer that has this size: an ordinal, a part of the answer, something named, or not wanted.
_ELSEWHERE = re.compile(
    r"(?:第|[这那哪前后首末头某上下]|其中|其余|最后|开头|结尾|[”’」』》\"])(?:的)?\s*$|[另再多少删改]\s*(?:外|有|写|加|来|说|用|要)?\s*$"
    r"|[每各][^，。！？；,;!?\n]{0,5}$|(?:不要|别|不用|不必|不需要|无需|不是|并非|不一定)[^，。！？；,;!?\n]{0,3}$"
)
_MENTIONED = re.compile(r"(?:有|含|带上?|提到|出现|加上|用上|名叫|叫)[^，。！？；,;!?\n]{0,8}$")
_PER_PART = re.compile(r"\s*(?:[一每][条句行段则首个]|/)")


def interval(text: str) -> tuple[int, int] | None:
    """Smallest and largest value of a number phrase: "16" and "十六" (16, 16), "两三" (2, 3), "三四十" (30, 40), "十几" (11, 19).

    None for what has no certain bounds ("几", "二十来", "半") and for what is no number ("十二十").
    """
    text = text.replace(" ", "").replace("俩", "两").replace("仨", "三")
    if text[-1:] in ("几", "多", "余"):  # "十几", "二十多": not the tens that follow
        value = number(text[:-1])
        return (value + 1, value + 9) if value and value < 100 and value % 10 == 0 else None
    value = number(text)
    if value is not None:
        return value, value
    spoken = _SPOKEN.fullmatch(text)
    if not spoken:
        return None
    pair = _PAIRS.get((_DIGITS[spoken["first"]], _DIGITS[spoken["second"]]))
    scale, head = _TEN[spoken["scale"]], spoken["head"]
    base = number(head) if head else 0
    if pair is None or base is None or base % (10 * scale) or (head and _TEN.get(head[-1]) != 10 * scale):
        return None
    return base + pair[0] * scale, base + pair[1] * scale


def number(text: str) -> int | None:
    """A whole number in digits or Chinese numerals below 100 million ("16", "十六", "1.5万", "一百二"); None if it is none."""
    if figures := _FIGURES.fullmatch(text):
        value = float(figures["value"]) * _TEN[figures["scale"]]
        return int(value) if value == int(value) else None
    if text in ("零", "〇"):
        return 0
    head, many, tail = text.rpartition("万")
    if not many:
        return _section(text)
    high = _section(head) if head else 1
    low = 0 if not tail else 1000 * _DIGITS[tail] if tail in _DIGITS else _section(tail.lstrip("零〇"))
    return None if high is None or low is None else 10000 * high + low


def _section(text: str) -> int | None:
    """A number below 10,000 in Chinese numerals; None if it is none."""
    found = _SECTION.fullmatch(text)
    if not found or not text:
        return None
    total, last = 0, 1
    for unit in "千百十":
        if found[unit] is not None:
            total, last = total + _TEN[unit] * (_DIGITS[found[unit]] if found[unit] else 1), _TEN[unit]
    if found["one"]:  # "一百二" is 120, "一百零二" 102
        total += _DIGITS[found["one"]] * (last // 10 if last > 10 and not found["zero"] else 1)
    return total


def sizes(request: str) -> list[Size]:
    """The sizes that a request states for the answer. What has no certain meaning is left out."""
    text = _WITHOUT_UNIT.sub(r"\1字", half_width(request))
    return [size for match in _SIZE.finditer(text) if (size := _size(text, match)) is not None]


def _size(text: str, match: re.Match) -> Size | None:
    bounds = _range(match)
    after = next((name for name, pattern in _AFTER_PATTERNS if pattern.match(text, match.end())), "")
    before, front = _relation(text[max(0, match.start() - 16) : match.start()])
    if bounds is None or "about" in (before, after) or _ELSEWHERE.search(front):
        return None
    unit = next(name for name in _UNITS if match[name] is not None)
    if unit == "characters" and _PER_PART.match(text, match.end()):
        return None
    relation = before if before not in ("", "exact") else after or before
    if after and relation != after:
        return None  # "至少20字以内"
    low, high = bounds
    if relation in ("most", "fewer"):
        return Size(0, high if relation == "most" else low - 1, unit)
    if relation in ("least", "more"):
        return Size(low if relation == "least" else low + 1, MANY, unit)
    if relation == "exact" or low < high:
        return Size(low, high, unit)
    return Size(low, high, unit) if _means_exactly(unit, low, match, front) else None


def _means_exactly(unit: str, value: int, match: re.Match, front: str) -> bool:
    """Whether a number without relation or range, such as "三条", states the size of the answer."""
    if unit == "characters":  # "八个字" does; "四字成语" and "要有健康两个字" do not
        measured = match["measure"] is not None or match["low"] in ("俩", "仨")
        return measured and value >= 4 and not _MENTIONED.search(front)
    return 2 <= value <= 100  # "一条" is an article, "千句" a figure of speech


def _range(match: re.Match) -> tuple[int, int] | None:
    """Smallest and largest number of a phrase such as "10", "两三" or "10到30"."""
    first = interval(match["low"])
    if first is None or match["high"] is None:
        return first
    second = interval(match["high"])
    if second is None:
        return None
    low, high = min(first[0], second[0]), max(first[1], second[1])
    return None if match["joint"].startswith("或") and high - low > 1 else (low, high)


def _relation(front: str) -> tuple[str, str]:
    """The relation that ends the text before a number, and the text before it."""
    if _ABOUT.search(front):
        return "about", front
    for name, pattern in _BEFORE_PATTERNS:
        if found := pattern.search(front):
            rest = front[: found.start()]
            return ("about", rest) if _ABOUT.search(rest) else (name, rest)
    return "", front
