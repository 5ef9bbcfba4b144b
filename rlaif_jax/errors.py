"""UserError for a user's mistake (shown without a traceback), and what a message may show of a value; Preempted and Interrupted for
a stopped run, and exit codes."""

from __future__ import annotations

import re
import reprlib
from pathlib import Path
from typing import Any

EXIT_USER_ERROR = 2
EXIT_RESTART = 75  # EX_TEMPFAIL of sysexits.h: everything is saved; start the same command again

# Control characters except tab and newline, and marks that reverse the direction of the text after them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_OSC = re.compile(r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]{0,4096}(?:\x07|\x1b\\|\x9c)")  # title, clipboard ...
_CSI = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]")  # colour, cursor ...
# Keys of well-known services, tokens of the form "header.payload.signature", and a password in a URL.
_SECRET = re.compile(
    r"(?<![\w-])(?:sk|pk|rk|xai|pplx|nvapi)-(?:[a-z0-9]{1,8}-){0,3}(?=\w*\d)\w{10,}[\w-]*|\bhf_[A-Za-z0-9]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}"
    r"|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}|\bA(?:KIA|SIA)[A-Z0-9]{16}\b|\bAIza[\w-]{30,}|\bxox[abeoprs]-[\w-]{10,}"
    r"|\bgsk_[A-Za-z0-9]{16,}|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*|(?<=://)[^\s/@:]*:[^\s/@]+(?=@)|\bBearer\s+[\w.~+/-]{16,}=*"
)
UTF16 = (b"\xff\xfe", b"\xfe\xff")  # byte-order marks
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_RUN = re.compile(r"[A-Za-z0-9+=]{28,}")


class UserError(ValueError):
    """A mistake in the input, the config or a file that the user can fix; the message says what is wrong and how to fix it."""


class Preempted(Exception):
    """The run got SIGTERM and has saved its state; the command exits with EXIT_RESTART."""


class Interrupted(KeyboardInterrupt):
    """The run got Ctrl-C (SIGINT, the stop button of a notebook) while it trained, and has saved its state."""


def printable(text: str) -> str:
    """Text of a model, a file or a user without terminal sequences and control characters; tabs and line ends stay.

    Half of a surrogate pair, which no terminal and no UTF-8 file takes, becomes U+FFFD.
    """
    return re.sub("[\ud800-\udfff]", "\ufffd", _CONTROL.sub("", _CSI.sub("", _OSC.sub("", text))))


def holds_secret(text: str) -> bool:
    """Whether a text looks like a key, a token or a URL with a password, or has one in it."""
    if _SECRET.search(text):
        return True
    if re.search(r"[\s/\\.]", text):  # a sentence, a path, a name with a version
        return False
    return any(len(re.findall(r"\d", r)) > 1 and re.search("[a-z]", r) and re.search("[A-Z]", r) for r in _RUN.findall(text))


def masked(text: str) -> str:
    """A message without the keys and passwords in it."""
    return _SECRET.sub("(hidden)", text)


def shown(value: Any, limit: int = 100, quote: bool = True) -> str:
    """A value in a message: short, on one line, without control characters, and hidden where it looks like a key."""
    if isinstance(value, str) and holds_secret(value):
        return "(hidden: it looks like a key)"
    try:
        text = _SHORT.repr(value) if quote or not isinstance(value, str) else " ".join(value.split())
    except ValueError:  # an integer of thousands of digits
        return f"a very large {type(value).__name__}"
    text = masked(printable(text))
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. UserError for a folder, a file that cannot be read, or other bytes."""
    try:
        return decoded(path.read_bytes(), str(path))
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; expected a file") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def decoded(content: bytes, where: str) -> str:
    """The text of a file, without a byte-order mark. UserError with the line of the first byte that is not UTF-8."""
    if content[:2] in UTF16:
        raise UserError(f"{where}:1: UTF-16, not UTF-8; convert the file to UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{where}:{line}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from error
