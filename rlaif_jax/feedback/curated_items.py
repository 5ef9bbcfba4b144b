"""The file of a curation: its items, read and checked, and what its candidates and debates lost, by cause."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif_jax import state_files
from rlaif_jax.data.records import PreferencePair, from_row
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.debate import Debate

_MOST_UNUSABLE = 32  # so many candidates that are cut off, empty or thinking only, and no other, stop the run
_CONTINUE = "Finished debates are saved; run the same command to continue: it asks again what got no answer."
# In files of older versions, a debate that failed for want of an answer is known by its problem alone.
_OLD_FAILURE = re.compile(r"(?:judge: |reflect: )?(?:timeout|rate_limit|server|connection|bad_body|budget|rejected|not_recorded):")


def key_of(item: Mapping[str, Any]) -> tuple[str, str]:
    """Two rows with one prompt and different system turns are two prompts."""
    return item["prompt"], item.get("system", "")


def read_items(path: Path) -> list[dict[str, Any]]:
    """The items of a file, one per prompt; none if there is no file. An incomplete last line, left by a crash, is skipped.

    UserError with file and line for a line that is not an item, or that was changed.
    """
    items: dict[tuple[str, str], dict[str, Any]] = {}
    for number, item in enumerate(state_files.read_rows(path), 1):
        try:
            _check_item(item, f"{path}:{number}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = error if isinstance(error, ValueError) else type(error).__name__
            raise UserError(f"{path}:{number} is not an item of the curation ({why}); mend or delete the line") from error
        items[key_of(item)] = item
    return list(items.values())


def _check_item(row: Any, where: str) -> None:
    """An error if a line of the file is not an item. Lines of older versions lack some of the fields."""
    texts = [row["prompt"], row.get("system", ""), row.get("problem", ""), *row.get("examples", [])]
    debates = [Debate(**d) for d in row.get("debates", [])]
    texts += [value for d in debates for value in dataclasses.astuple(d) if not isinstance(value, int | None)]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("expected a text")
    verdicts = [value for d in debates for value in (d.verdict, d.final) if value is not None]
    if any(isinstance(value, bool) or value not in (0, 1) for value in verdicts):
        raise ValueError("a verdict is 0, 1 or null")
    for pair in row["pairs"]:
        from_row(PreferencePair, pair, where)
    if not all(isinstance(count, int) for count in row.get("lost", {}).values()):
        raise ValueError("lost: expected counts by cause")
    if not isinstance(row.get("unanswered", True), bool):
        raise ValueError("unanswered: expected true or false")


def unanswered(item: Mapping[str, Any]) -> bool:
    """Whether a prompt is to be curated again, since some request got no answer."""
    debates = item.get("debates", [])
    return item.get("unanswered", not debates or any(_OLD_FAILURE.match(d["problem"]) for d in debates))


def drop_torn_line(path: Path) -> None:
    """Deletes an incomplete last line, left by a crash."""
    content = path.read_bytes() if path.exists() else b""
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with path.open("r+b") as file:
            file.truncate(complete)


def causes(items: Sequence[Mapping[str, Any]]) -> str:
    """Why candidates and debates gave nothing, with counts: "cut 3, duplicate 2"; "" if all gave something."""
    counts = _lost(items)
    for d in _debates(items):
        if d["final"] is None:
            cause = d.get("cause") or "unreadable"
            counts[cause] = counts.get(cause, 0) + 1
    return ", ".join(f"{cause} {count}" for cause, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _debates(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [d for item in items for d in item.get("debates", [])]


def _lost(items: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Candidates that are not debated, by cause."""
    counts: dict[str, int] = {}
    for cause, count in (pair for item in items for pair in item.get("lost", {}).items()):
        counts[cause] = counts.get(cause, 0) + count
    return counts


def _first_problem(items: Sequence[Mapping[str, Any]]) -> str:
    """The first thing that went wrong with a request, as the end of a sentence; "" if nothing did."""
    for item in items:
        for text in (item.get("problem", ""), *(d["problem"] for d in _debates([item]) if d["final"] is None)):
            if text:
                return f". The first problem: {text}"
    return ""


def why_no_pair(items: Sequence[Mapping[str, Any]]) -> str:
    """Why the items have no pair, in words."""
    finals = {d["final"] for d in _debates(items)}
    counts = f" ({causes(items)})" if causes(items) else ""
    if not finals:
        advice = "; raise curate.max_tokens" if _lost(items).keys() & {"cut", "thinking"} else ""
        return f"no candidate could be used{counts}{advice}{_first_problem(items)}"
    named = {
        frozenset(): "no debate gave a valid verdict", frozenset({1}): "all debated candidates were accepted",
        frozenset({0}): "all debated candidates were rejected",
    }  # fmt: skip
    reason = named.get(frozenset(finals - {None}), "no prompt has both an accepted and a rejected candidate")
    return f"{reason}{counts}{_first_problem(items)}"


def check_lost(items: Sequence[Mapping[str, Any]], most: float) -> None:
    """UserError if too many of these items' requests or debates gave nothing. Candidates that were written but cannot be used
    stop the run only if there is no other."""
    debates, lost = _debates(items), _lost(items)
    failed = sum(count for cause, count in lost.items() if cause not in ("cut", "thinking", "empty", "duplicate"))
    invalid, asked = sum(d["final"] is None for d in debates) + failed, len(debates) + failed
    if invalid <= most * asked and (debates or sum(lost.values()) < _MOST_UNUSABLE):
        return
    if not debates:
        raise UserError(f"{why_no_pair(items)}. {_CONTINUE}")
    raise UserError(
        f"{invalid / asked:.0%} of the debates gave no valid verdict (limit {most:.0%}, curate.max_invalid): "
        f"{causes(items)}{_first_problem(items)}. {_CONTINUE}"
    )
