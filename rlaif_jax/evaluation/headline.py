"""The result of a comparison in one plain sentence, whichever way it went."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif_jax.evaluation.compare import System, difference, figures, is_rate, paired
from rlaif_jax.evaluation.hacking import Flag
from rlaif_jax.evaluation.scores import Figure
from rlaif_jax.evaluation.text import cell, display, label, number, signed

HEADLINE_ORDER = ("excellent", "grader", "compliance", "reward")  # the first that both systems have is the one told


def headline(
    systems: Sequence[System], pair: tuple[System, System] | None, flags: Sequence[Flag] = (), seed: int = 0
) -> str:
    """What the comparison of pair (reference, candidate) says; of systems[0] alone where pair is None.

    "raises" and "lowers" only where the 95 % interval of the paired difference leaves 0 out. Failed checks are told.
    """
    if pair is None:
        return _alone(systems[0], seed)
    a, b = pair
    name = next((s for s in HEADLINE_ORDER if s in a.score_names and s in b.score_names), None)
    if name is None:
        return f"No score is known for both {display(a.name)} and {display(b.name)}: nothing can be said about quality."
    change = difference(a, b, name, seed)
    if change.value is None:
        return f"No prompt has a verdict on the {label(name)} for both systems: nothing can be said about quality."
    sentence = _change_sentence(a, b, name, change, is_rate(systems, name))
    failed = [f.name for f in flags if f.ok is False]
    if failed:
        sentence += f" But checks against reward hacking fail: {', '.join(failed)}."
    return sentence


def _alone(system: System, seed: int) -> str:
    name = next((s for s in HEADLINE_ORDER if s in system.score_names), None)
    if name is None:
        return f"{display(system.name)} alone, without scores: nothing to compare."
    shown = cell(figures(system, seed)[name], is_rate((system,), name))
    return f"{display(system.name)} alone, nothing to compare with: {label(name)} {shown}."


def _change_sentence(a: System, b: System, name: str, change: Figure, rate: bool) -> str:
    x, y, _ = paired(a, b, name)
    before, after = (number(float(v.mean()), rate) for v in (x, y))
    unit = " points" if rate else ""
    interval = "no interval, for all prompts changed alike"
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
