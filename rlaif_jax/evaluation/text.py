"""Formats numbers and names of a report, for HTML, Markdown and the terminal."""

from __future__ import annotations

import math
import re
from typing import Any

from rlaif_jax.evaluation.scores import Figure

LABELS = {
    "excellent": "rate of flawless answers", "compliance": "rate of met constraints", "reward": "reward model's score",
    "grader": "grader's verdict", "grader_score": "grader's score", "judge": "judge's verdict", "judge_p": "judge's P(good)",
    "debate": "debate's verdict", "length_chars": "length, characters", "length_words": "length, words",
    "length_tokens": "length, tokens", "finished": "ended before the limit", "distinct_1": "distinct-1",
    "distinct_2": "distinct-2", "self_repetition": "repeated 4-grams", "unique_responses": "unique answers",
}  # fmt: skip
ABOUT = {
    "excellent": "share of answers in which the corpus's gold scorer finds no flaw; higher is better",
    "compliance": "share of answers that keep what the prompt asks for explicitly (gold scorer)",
    "reward": "mean score of the reward model; it has no zero point, only differences have a meaning",
    "grader": "the independent grader, which no arm is trained on",
    "grader_score": "mean of the number behind the grader's verdict (log-odds of good)",
    "judge": "share of answers that the LLM judge finds good by its principles: P(good) above 50 %",
    "judge_p": "mean of the number behind the judge's verdict, between 0 and 1",
    "debate": "share of answers that the multi-agent debate finds good (two debaters, a judge, a review)",
    "length_chars": "mean", "length_words": "mean", "length_tokens": "mean",
    "finished": "share of answers that end by themselves, before the limit of tokens",
    "distinct_1": "different 1-grams divided by all 1-grams of all answers; higher is more varied",
    "distinct_2": "different 2-grams divided by all 2-grams of all answers; higher is more varied",
    "self_repetition": "share of answers in which a 4-gram occurs more than once; lower is better",
    "unique_responses": "different answers divided by all answers",
}  # fmt: skip
# Names of scores that are yes or no, beside a sample.
BADGES = {
    "excellent": "flawless", "compliance": "constraint met", "grader": "good (grader)", "judge": "good (judge)",
    "debate": "good (debate)",
}  # fmt: skip
_COUNTED = ("distinct_1", "distinct_2", "self_repetition")  # on n-grams of characters or words
_BREAKS = re.compile(r"\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~$!])")


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "−": "$-$",
}  # fmt: skip


def label(metric: str, unit: str = "") -> str:
    """The name of a metric in words, with the unit of its n-grams if it has them. Other scores keep their name."""
    return LABELS.get(metric, metric) + (f", {unit}" if unit and metric in _COUNTED else "")


def display(system: str) -> str:
    """The name of a system in a sentence."""
    return system.upper() if system in ("rl", "sft", "rlaif") else system


def number(value: float, rate: bool) -> str:
    """67.3 % for a rate; else one decimal from 10 on, and three decimals below."""
    if rate:
        return f"{100 * value:.1f} %"
    if abs(value) >= 1e6:
        return f"{value:.3e}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def signed(value: float, rate: bool) -> str:
    """A difference with its sign: in points (without unit) for a rate, else like `number`."""
    if rate:
        return f"{100 * value:+.1f}"
    if abs(value) >= 1e6:
        return f"{value:+.3e}"
    return f"{value:+.1f}" if abs(value) >= 10 else f"{value:+.3f}"


def cell_parts(figure: Figure | None, rate: bool, sign: bool = False) -> dict[str, str]:
    """{"value", "interval", "note"} of a figure; "" if there is none. Intervals of rates are in percent."""
    if figure is None:
        return {"value": "", "interval": "", "note": ""}
    note = f"{figure.missing} of {figure.n + figure.missing} without a valid score" if figure.missing else ""
    if figure.value is None:
        return {"value": "no score", "interval": "", "note": note}
    value = signed(figure.value, rate) if sign else number(figure.value, rate)
    interval = ""
    if figure.has_interval:
        ends = (signed(v, rate) if sign else number(v, rate).removesuffix(" %") for v in (figure.low, figure.high))
        interval = "[" + ", ".join(ends) + "]"
    return {"value": value, "interval": interval, "note": note}


def cell(content: Any, rate: bool = False, brief: bool = False) -> str:
    """A table cell as text: a Figure with its interval, a number, "" for None, else str(content).

    brief: for a figure with missing scores, show only n.
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
    """Escapes text for a Markdown table: markup characters, "<" and "&" (as entities), and line breaks."""
    text = printable(str(content)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text).replace("\n", "<br>")


def escape_latex(content: Any) -> str:
    """Escapes text for a LaTeX table."""
    return "".join(_LATEX.get(c, c) for c in printable(str(content)).replace("\n", " "))


def printable(text: str) -> str:
    """The text with one kind of line break, and with a mark in place of every other control character and lone surrogate."""
    return _CONTROL.sub("\ufffd", _BREAKS.sub("\n", text))
