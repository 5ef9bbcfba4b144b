"""How numbers and names of a report are written, in HTML, Markdown and the terminal alike."""

from __future__ import annotations

import math
import re
from typing import Any

from rlaif_jax.evaluation.scores import Figure

LABELS = {
    "excellent": "gold excellence rate", "compliance": "compliance with the request", "reward": "reward model score",
    "grader": "independent grader", "length_chars": "length, characters", "length_words": "length, words",
    "length_tokens": "length, tokens", "finished": "finished by itself", "distinct_1": "distinct-1", "distinct_2": "distinct-2",
    "self_repetition": "repeats a 4-gram", "unique_responses": "unique responses",
}  # fmt: skip
_COUNTED = ("distinct_1", "distinct_2", "self_repetition")  # on n-grams of characters or words
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~$!])")


def label(metric: str, unit: str = "") -> str:
    """A metric's name in words, with the unit of its n-grams where it has them; a score of the user's own keeps its name."""
    return LABELS.get(metric, metric) + (f", {unit}" if unit and metric in _COUNTED else "")


def display(system: str) -> str:
    """A system's name as it stands in a sentence."""
    return system.upper() if system in ("rl", "sft", "rlaif") else system


def number(value: float, rate: bool) -> str:
    """67.3 % for a rate, else one digit after the point for large numbers and three for small ones."""
    if rate:
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def signed(value: float, rate: bool) -> str:
    """A difference with its sign: in points for a rate (without the unit), else as `number` writes it."""
    if rate:
        return f"{100 * value:+.1f}"
    return f"{value:+.1f}" if abs(value) >= 10 else f"{value:+.3f}"


def cell_parts(figure: Figure | None, rate: bool, sign: bool = False) -> dict[str, str]:
    """{"value", "interval", "note"} of a figure, empty where there is nothing. Intervals of rates are in percent."""
    if figure is None:
        return {"value": "", "interval": "", "note": ""}
    note = f"n = {figure.n}, {figure.missing} without verdict" if figure.missing else ""
    if figure.value is None:
        return {"value": "no verdict", "interval": "", "note": note}
    value = signed(figure.value, rate) if sign else number(figure.value, rate)
    interval = ""
    if figure.has_interval:
        ends = (signed(v, rate) if sign else number(v, rate).removesuffix(" %") for v in (figure.low, figure.high))
        interval = "[" + ", ".join(ends) + "]"
    return {"value": value, "interval": interval, "note": note}


def cell(content: Any, rate: bool = False, brief: bool = False) -> str:
    """One table cell as text: a Figure with its interval, a number, None as nothing, anything else as it is.

    brief: of a figure with missing verdicts, only n.
    """
    if content is None:
        return ""
    if isinstance(content, Figure):
        parts = cell_parts(content, rate)
        note = (f"n={content.n}" if brief else f"({parts['note']})") if parts["note"] else ""
        return " ".join(p for p in (parts["value"], parts["interval"], note) if p)
    if isinstance(content, float):
        return f"{content:.4g}" if math.isfinite(content) else "not finite"
    return str(content)


def escape_markdown(content: Any) -> str:
    """Text that stays text in a Markdown table: markup characters escaped, "<" and "&" as entities, one line."""
    text = str(content).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _MARKDOWN.sub(r"\\\1", text)
    return re.sub(r"\r\n|[\r\n\x0b\x0c\x85\u2028\u2029]", "<br>", text)
