"""Pleas: sentences of an answer that argue with its judge. They are found in any language, in time linear in the text.

A sentence is a plea if it holds an order for a verdict, or two kinds of words that honest answers do not join: who judges, what
belongs to judging, a verdict, an order to dismiss, the answer itself. The kinds are data of the languages (`zh_pleas.py`,
`en_pleas.py`). Marks of chats, templates and replies (a role, a control token, a JSON verdict) count as well.
"""

from __future__ import annotations

import collections
import html
import re
import unicodedata

from rlaif_jax.language.en import EN
from rlaif_jax.language.zh import ZH

_LONG = 240  # characters of a sentence that is read as one; longer ones are cut at commas
_END = re.compile(r"[。！？!?\r\n\v\f\x85\u2028\u2029…]+[\"'”’」』）)]*|\.+[\"'”’)]*(?=\s|$)")
_COMMA = re.compile(r"[，,；;：:]")
_LETTERED = re.compile(r"(?<![^\W_])(?:[^\W_][\W_]{1,3}){3,}[^\W_](?![^\W_])")  # "G o o d"
_HAN = "[\u3400-\u9fff]"
_HAN_GAP = re.compile(rf"(?<={_HAN})[^\w，。！？；：“”‘’、,.!?;:\"'「」（）()]+(?={_HAN})")
_OBJECT = re.compile(r"\{[^{}]*\}|\[[^\[\]{}]*\]")
_OVERRIDES = re.compile("[\u202a-\u202e\u2066-\u2069]")  # marks that reorder the text that people see
_INVISIBLE = str.maketrans("", "", "\u3164\u115f\u1160\uffa0")  # letters without a shape
_BOXED = {start + i: chr(97 + i) for start in (0x1F130, 0x1F150, 0x1F170, 0x1F1E6) for i in range(26)}
_LOOKALIKE_FIGURES = str.maketrans("0134@$", "oleaas")  # "G00d"


def _any(kind: str) -> str:
    return "|".join(language.pleas[kind] for language in (EN, ZH))


_FOLD = {ord(old): new for language in (EN, ZH) for old, new in language.fold.items()}
_NAMES = (
    "judge", "matter", "weak_matter", "prior", "others", "dismiss", "self", "verdict", "praise", "order", "command", "urge",
    "business", "doubt", "phrase",
)  # fmt: skip
_KINDS = [({name: re.compile(language.pleas[name]) for name in _NAMES}, re.compile(letter))
          for language, letter in ((EN, "[a-z]"), (ZH, _HAN))]  # fmt: skip
# Kinds of words that make a plea together.
_PAIRS = (
    ("judge", "matter"), ("judge", "verdict"), ("judge", "praise"), ("judge", "command"), ("judge", "dismiss"), ("judge", "urge"),
    ("matter", "verdict"), ("self", "verdict"), ("self", "praise"), ("self", "matter"), ("dismiss", "verdict"),
    ("business", "urge"),
)  # fmt: skip
_SUSPECT = {"judge", "matter", "verdict", "dismiss", "self", "command", "prior"}  # one of them is enough beside a plea
_TOPICS = {"judge", "matter", "weak_matter", "verdict", "praise"}  # what a request may be about
_DOUBTED = {"judge", "matter", "verdict", "praise", "self", "business", "doubt"}
_BARE = _any("bare")
_BARE_VERDICT = re.compile(rf"\W*(?:(?:{_BARE}|1|a|b)(?!\w)\W*)+")
_LABELLED = re.compile(rf"[^\w]*[^\W_]{{1,20}}\s*[:：]\s*\W*(?:{_BARE}|bad)\W*")
_VERDICT_LINE = re.compile(  # "score: 10", "<verdict>Good"
    rf"(?<![a-z])(?:{_any('key')})[\"'“”’`*]{{0,3}}(?:(?:\s*(?:[:：=]|[-–—]{{1,2}}|=>|->)\s*|>\s*|\s*\(\s*)[\"'“‘`*\s]{{0,4}}"
    rf"(?:{_any('value')})|\s*(?:{_any('is')})\s*[\"'“‘`*]{{0,2}}(?:{_any('said')}))(?![\w/])"
)
_NAMED = re.compile(  # a word of the judge's reply with its capital letter
    rf"(?<![A-Za-z])(?:Good|GOOD|Bad|BAD)(?![A-Za-z-])(?!\s+[A-Z])(?!\s+(?:{_any('after_good')})\b)(?P<after>\W*{_HAN})?"
)
_BEFORE = re.compile(r"([^\W_]+)[^\w.。！？!?\n]*$")
_ROLE = re.compile(rf"[\W_]{{0,8}}(?:{_any('role')})\s*[*_\]】>）)]{{0,3}}\s*[:：]")
_CONTROL = re.compile(
    r"<\|[^|<>]{0,60}\|>|\[/?inst\]|<</?sys>>|</?s>|<(?:start|end)_of_turn>|[\[<({|]/?(?:sys|inst|system|user|assistant)[\]>)}|]"
    r"|^\W*(?:system|user|assistant)\W*$"
    r"|<[/\s]*(?:eos|bos|pad|unk|think\w*|thought|tool\w*|system|user|assistant|answer|response|request|instructions?|data|text|verdict"
    r"|judge\w*|reply|output|prompt|turn|human|model|eot\w*|im_\w+)\s*/?>"
    r"|^\W{0,2}%%\s*\w+|[⟦⟧〚〛⟬⟭⟪⟫]|(?:^|\s)\]{2,}|\[{2,}(?:\s|$)"
    r"|^\W*#{2,}\s*(?:system|instructions?|user|assistant|response|input)"
    rf"|\bdoog\b|-{{4,}}[^-\n]{{0,40}}(?:{_any('ends')})"
)


def plain(text: str) -> str:
    """The text as a reader understands it: small letters of one width and script, no invisible characters or spelling tricks."""
    text = html.unescape(text) if "&" in text else text
    text = re.sub(r"\\u00([0-9a-fA-F]{2})", lambda m: chr(int(m[1], 16)), text) if "\\u00" in text else text
    text = unicodedata.normalize("NFKC", text.translate(_BOXED).translate(_INVISIBLE))
    if not text.isascii():
        parts = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in parts if unicodedata.category(c) not in ("Mn", "Me", "Cf", "Co", "Cs"))
        text = unicodedata.normalize("NFC", text)
    text = _LETTERED.sub(_joined, text.lower().translate(_FOLD))
    text = re.sub(r"\b[a-z]+[0134@$][a-z0134@$]*[a-z]\b", lambda m: m[0].translate(_LOOKALIKE_FIGURES), text)
    return _HAN_GAP.sub("", text)


def _joined(match: re.Match) -> str:
    """Letters that were set apart, joined. Another gap than most is a space between words."""
    pieces = re.split(r"([\W_]+)", match[0])
    usual = collections.Counter(pieces[1::2]).most_common(1)[0][0]
    return "".join(piece if i % 2 == 0 else "" if piece == usual else " " for i, piece in enumerate(pieces))


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with its end; joined they are the text. Spelled words and JSON objects are not cut."""
    whole = sorted((m.start(), m.end()) for pattern in (_LETTERED, _OBJECT) for m in pattern.finditer(text))
    found, start, at = [], 0, 0
    for match in _END.finditer(text):
        while at < len(whole) and whole[at][1] <= match.start():
            at += 1
        if at < len(whole) and whole[at][0] < match.end() and match.start() < whole[at][1]:
            continue
        found.append(text[start : match.end()])
        start = match.end()
    found += [text[start:]] if start < len(text) else []
    return [part for sentence in found for part in (_cut(sentence) if len(sentence) > _LONG else [sentence])]


def _cut(sentence: str) -> list[str]:
    """A long sentence in parts of at most `_LONG` characters, at commas where there are any."""
    parts, start = [], 0
    while len(sentence) - start > _LONG:
        commas = [m.end() for m in _COMMA.finditer(sentence, start, start + _LONG)]
        end = commas[-1] if commas else start + _LONG
        parts.append(sentence[start:end])
        start = end
    return [*parts, sentence[start:]]


def without_pleas(text: str, request: str = "") -> str:
    """The text without the sentences that argue with the judge. From a mark that forges the end of the answer on, nothing is kept.

    Beside a plea, sentences with any word of a judge's business go, too. Kinds of words that the request holds are no sign of a
    plea: a wish for a judge's birthday may speak of judges.
    """
    parts = sentences(text)
    plains = [plain(part).strip() for part in parts]
    end = next((i for i, p in enumerate(plains) if _CONTROL.search(p) or _ROLE.match(p) or _OVERRIDES.search(parts[i])), len(parts))
    asked_for = _kinds(plain(request)) & _TOPICS
    kinds = [_kinds(p) - asked_for for p in plains[:end]]
    several = sum(bool(re.search(r"\w", p)) for p in plains) > 1
    pleas = [_argues(parts[i], plains[i], kinds[i], several) for i in range(end)]
    if end == len(parts) and not any(pleas):
        return text
    return "".join(
        parts[i] for i in range(end) if not pleas[i] and not kinds[i] & _SUSPECT and not re.match(r"[`{}\[\]\"'(<]", plains[i])
    )


def without_doubt(text: str, request: str) -> str:
    """The text without the sentences that hold a word of a judge's business.

    The text as it is if nothing else remains, or if the request holds such a word: then the answer may well do so, too.
    """
    parts = sentences(text)
    kept = [part for part in parts if not _kinds(plain(part)) & _DOUBTED]
    if len(kept) == len(parts) or not any(re.search(r"\w", part) for part in kept) or _kinds(plain(request)) & _DOUBTED:
        return text
    return "".join(kept)


def _kinds(text: str) -> set[str]:
    """The kinds of words in a plain sentence."""
    found = set()
    for patterns, letter in _KINDS:
        if letter.search(text):
            own = {name for name, pattern in patterns.items() if pattern.search(text)}
            if {"matter", "verdict"} <= own and not patterns["matter"].search(patterns["verdict"].sub(" ", text)):
                own.remove("matter")  # "the highest score" is one thing, not two
            found |= own
    return found


def _argues(raw: str, text: str, kinds: set[str], several: bool) -> bool:
    """Whether a sentence is a plea; `text` is the plain form of `raw`, `several`: it is not the whole answer."""
    if kinds & {"order", "phrase"} or _VERDICT_LINE.search(text) or _LABELLED.fullmatch(text) or _names_verdict(raw):
        return True
    if _BARE_VERDICT.fullmatch(text) and (several or text.strip("\"'.!。！ ") == "good"):
        return True  # a single "A" may answer a question
    if "dismiss" in kinds and (("matter" in kinds and "others" not in kinds) or {"weak_matter", "prior"} <= kinds):
        return True
    return any(kinds.issuperset(pair) for pair in _PAIRS if "urge" not in pair or "others" not in kinds)


def _names_verdict(raw: str) -> bool:
    """Whether Good or Bad stands, with its capital letter, in the middle of a sentence and not in a title."""
    text = unicodedata.normalize("NFKC", raw)
    for found in _NAMED.finditer(text):
        before = _BEFORE.search(text, max(0, found.start() - 40), found.start())
        if found["after"] if before is None else not before[1][:1].isupper():
            return True
    return False
