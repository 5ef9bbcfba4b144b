"""Lists of rules as text files, one rule per line: the judge's principles (S_D) and the generator's strategies (S_G)."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

from rlaif_jax import state_files
from rlaif_jax.errors import UserError, read_text, shown
from rlaif_jax.language import ZH, Language

_HERE = Path(__file__).parent / "rules"
_AGAIN = "move the folder of the stage away, and the game begins again"
_ESCAPED = re.compile(r"\A\\(?=[#\\])")


def read_rules(source: str | Path, language: Language = ZH) -> list[str]:
    """The rules of a file, one per line. Blank lines and lines that begin with "#" are skipped; a rule that begins with "#" is
    written as "\\#...", as `rules_text` does.

    `source` is a path, or the name of a bundled list ("principles", "principles_general", "strategies") in the
    given `language`.
    """
    bundled = _HERE / language.name / f"{source}.txt"
    path = bundled if _exists(bundled) else _expanded(Path(source))
    if not _exists(path):
        known = ", ".join(sorted(p.stem for p in bundled.parent.glob("*.txt")))
        raise UserError(f"rules {shown(str(source))}: not a file, and not a bundled list ({known})")
    lines = (line.strip() for line in re.split(r"\r\n|\r|\n", read_text(path)))
    rules = [_ESCAPED.sub("", line) for line in lines if line and not line.startswith("#")]
    if not rules:
        raise UserError(f"{path} has no rules; write one per line")
    return rules


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # "~" with a name that is no user
        return path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (ValueError, OSError):  # a name with NUL bytes, or too long
        return False


def rules_text(rules: Sequence[str]) -> str:
    """The content of a file that `read_rules` reads as these rules."""
    lines = (re.sub(r"[\r\n]+", " ", rule).strip() for rule in rules)
    return "".join(f"\\{line}\n" if line.startswith(("#", "\\")) else f"{line}\n" for line in lines)


def diff(old: Sequence[str], new: Sequence[str]) -> str:
    """The differences between two lists, one line per rule: "- removed", "+ added", "  unchanged"."""
    return "\n".join(line for line in difflib.ndiff(list(old), list(new)) if not line.startswith("?"))


@dataclasses.dataclass(frozen=True)
class Edit:
    """One change of a list: "keep", "add" `text`, "replace" or "remove" the entry `number` (from 1)."""

    edit: str
    number: int = 0
    text: str = ""


def apply_edit(rules: Sequence[str], edit: Edit, limit: int) -> list[str] | None:
    """The list after the edit, or None if the edit changes nothing or is refused.

    Refused are: a rule that is in the list already, a list longer than `limit`, an empty list, and a number without an entry.
    """
    rules, text = list(rules), " ".join(edit.text.split())
    has_place = 1 <= edit.number <= len(rules)
    if edit.edit in ("add", "replace") and (not text or text in rules):
        return None
    if edit.edit == "add" and len(rules) < limit:
        return [*rules, text]
    if edit.edit == "replace" and has_place:
        return [*rules[: edit.number - 1], text, *rules[edit.number :]]
    if edit.edit == "remove" and has_place and len(rules) > 1:
        return [*rules[: edit.number - 1], *rules[edit.number :]]
    return None


class Versions:
    """All versions of a list, accepted or not, as numbered text files, with their scores."""

    def __init__(self, folder: Path):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._index = folder / "versions.json"
        self.rows: list[dict] = _read_index(self._index) if self._index.exists() else []

    def add(self, rules: Sequence[str], score: float | None, why: str, accepted: bool) -> int:
        """Saves a version and returns its number."""
        number = len(self.rows)
        text = rules_text(rules)
        state_files.write_text(self.path(number), text)
        row = {"version": number, "score": score, "why": why, "accepted": accepted, "sum": zlib.crc32(text.encode())}
        self.rows.append(row)
        state_files.write_json(self._index, [state_files.sealed(row) for row in self.rows])
        return number

    def truncate(self, count: int) -> None:
        """Drops all versions from number `count` on, left by an interrupted round that is played again. UserError if some before it
        are missing."""
        if len(self.rows) < count:
            there = f"{self._index} has {len(self.rows)} of {count} versions"
            raise UserError(f"{there}; {_AGAIN}")
        self.rows = self.rows[:count]

    def path(self, number: int) -> Path:
        """The file of a version."""
        return self._folder / f"v{number:03d}.txt"

    def rules(self, number: int) -> list[str]:
        """The rules of a version. UserError if its file was changed."""
        noted, path = self.rows[number].get("sum"), self.path(number)  # of an earlier version: None
        if noted is not None and not (path.exists() and zlib.crc32(path.read_bytes()) == noted):
            raise UserError(f"{path} is missing or damaged; {_AGAIN}")
        return read_rules(self.path(number))

    def best(self) -> int:
        """The number of the accepted version with the best score; the earliest one on ties."""
        scored = [r for r in self.rows if r["accepted"] and r["score"] is not None]
        if not scored:
            raise UserError(f"{self._index} has no accepted version with a score; {_AGAIN}")
        return max(scored, key=lambda r: (r["score"], -r["version"]))["version"]

    def in_force(self) -> dict:
        """The row of the last accepted version."""
        accepted = [r for r in self.rows if r["accepted"]]
        if not accepted:
            raise UserError(f"{self._index} has no accepted version; {_AGAIN}")
        return accepted[-1]


def _read_index(path: Path) -> list[dict]:
    """The rows of versions.json. UserError that names the file if it is damaged."""
    found = state_files.read_json(path)
    rows = state_files.unsealed_rows(found if isinstance(found, list) else [None], lambda i: f"{path}, version {i}")
    try:
        for number, row in enumerate(rows):
            score = row["score"]
            known = score is None or (type(score) in (int, float) and math.isfinite(score))
            if type(row["version"]) is not int or row["version"] != number or not known:
                raise ValueError(f"row {number} has the version {row['version']!r:.40} and the score {score!r:.40}")
            if not isinstance(row["why"], str) or not isinstance(row["accepted"], bool):
                raise ValueError(f"row {number} has no reason or no outcome")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error!s:.200}); {_AGAIN}") from error
    return rows
