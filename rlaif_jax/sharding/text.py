"""Names for people: what does not print is escaped, and widths are those on a screen."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """The text with line breaks, control characters and invisible ones escaped, as \\n or \\x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def width(text: str) -> int:
    """How many columns of a terminal the text takes: two for each wide (Chinese) character, none for a combining one."""
    return sum(0 if unicodedata.combining(c) else 2 if is_wide(c) else 1 for c in text)


def is_wide(character: str) -> bool:
    """Whether it is a Chinese, Japanese or Korean character, or another of double width."""
    return unicodedata.east_asian_width(character) in "WF"


def pad(text: str, columns: int, right: bool = False) -> str:
    """The text filled up with spaces, on its left side to stand at the right."""
    space = " " * (columns - width(text))
    return space + text if right else text + space


def shorten(text: str, columns: int) -> str:
    """The text with "…" in place of its middle, where it is wider than that; its head and tail stay."""
    if width(text) <= columns:
        return text
    head = list(text)
    tail: list[str] = []
    left = (columns - 1) // 2
    while head and width("".join(tail)) + width(head[-1]) <= left:
        tail.insert(0, head.pop())
    while head and width("".join([*head, *tail])) > columns - 1:
        head.pop()
    return "".join([*head, "…", *tail])
