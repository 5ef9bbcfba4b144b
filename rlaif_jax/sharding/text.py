"""Text for terminals: escaping of unprintable characters, and widths in columns."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """Escapes line breaks, control characters and invisible characters, as \\n or \\x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def width(text: str) -> int:
    """The width of the text in terminal columns: two for a wide (Chinese) character, none for a combining one."""
    return sum(0 if unicodedata.combining(c) else 2 if is_wide(c) else 1 for c in text)


def is_wide(character: str) -> bool:
    """Whether the character has double width, as Chinese, Japanese and Korean ones have."""
    return unicodedata.east_asian_width(character) in "WF"


def pad(text: str, columns: int, right: bool = False) -> str:
    """Pads the text with spaces to this width; `right` aligns it to the right."""
    space = " " * (columns - width(text))
    return space + text if right else text + space


def shorten(text: str, columns: int) -> str:
    """Shortens the text to this width: replaces its middle by "…"."""
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
