"""The result of a comparison in one sentence, for better or worse."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif_jax.evaluation.compare import System, difference, figures, is_rate, paired
from rlaif_jax.evaluation.hacking import Flag
from rlaif_jax.evaluation.scores import Figure
from rlaif_jax.evaluation.text import cell, display, label, number, signed

HEADLINE_ORDER = ("excellent", "grader", "compliance", "reward")  # the headline is about the first score that both systems have


def headline(
    systems: Sequence[System], pair: tuple[System, System] | None, flags: Sequence[Flag] = (), seed: int = 0
) -> str:
    """The result of comparing the pair (reference, candidate); without a pair, the score of systems[0].

    It says "raises" or "lowers" only if the 95 % interval of the paired difference excludes 0. It names failed checks.
    """
    if pair is None:
        return _alone(systems[0], seed)
    a, b = pair
    name = next((s for s in HEADLINE_ORDER if s in a.score_names and s in b.score_names), None)
    if name is None:
        return f"{display(a.name)} and {display(b.name)} have no score in common: nothing can be said about quality."
    change = difference(a, b, name, seed)
    if change.value is None:
        return f"No prompt has a {label(name)} for both systems: nothing can be said about quality."
    sentence = _change_sentence(a, b, name, change, is_rate(systems, name))
    failed = [f.name for f in flags if f.ok is False]
    if failed:
        sentence += f" But these checks for reward hacking fail: {', '.join(failed)}."
    return sentence


def _alone(system: System, seed: int) -> str:
    name = next((s for s in HEADLINE_ORDER if s in system.score_names), None)
    if name is None:
        return f"{display(system.name)} alone, without a score."
    shown = cell(figures(system, seed)[name], is_rate((system,), name))
    return f"{display(system.name)} alone: {label(name)} {shown}."


def _change_sentence(a: System, b: System, name: str, change: Figure, rate: bool) -> str:
    x, y, _ = paired(a, b, name)
    before, after = (number(float(v.mean()), rate) for v in (x, y))
    unit = " points" if rate else ""
    interval = "no interval, since all prompts changed by the same amount"
    if change.has_interval:
        interval = f"95 % interval {signed(change.low, rate)} to {signed(change.high, rate)}"
    facts = f"({signed(change.value, rate)}{unit}, {interval}, {change.n} prompts)"
    if change.has_interval and (change.low > 0 or change.high < 0):
        verb = "raises" if change.low > 0 else "lowers"
        return f"{display(b.name)} {verb} the {label(name)} from {before} to {after} {facts}."
    return (
        f"{display(b.name)} does not measurably change the {label(name)}: {before} for {display(a.name)}, "
        f"{after} for {display(b.name)} {facts}."
    )
