"""The result of a comparison in a few sentences, for better or worse."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from rlaif_jax.evaluation.compare import System, difference, figures, is_rate, paired
from rlaif_jax.evaluation.hacking import Candidate, Flag, failed, has_headroom
from rlaif_jax.evaluation.scores import Figure
from rlaif_jax.evaluation.text import cell, display, label, number, signed
from rlaif_jax.evaluation.wins import Wins, found_wins

# What a sentence is about: the first score that both systems have, that is independent of the arm, and that leaves room for a gain.
HEADLINE_ORDER = ("excellent", "grader", "grader_score", "debate", "judge", "judge_p", "reward", "compliance")


def headline(
    systems: Sequence[System], candidates: Sequence[Candidate] = (), flags: Mapping[str, Sequence[Flag]] | None = None,
    wins: Sequence[Wins] = (), seed: int = 0,
) -> str:  # fmt: skip
    """The result for every candidate and the comparison of candidates; without candidates, the score of systems[0].

    It says "raises", "lowers" or "best" only if the 95 % interval of the paired difference excludes 0. It names failed checks.
    """
    if not candidates:
        return _alone(systems[0], seed)
    known = {s.name: s for s in systems}
    sentences = []
    for c in candidates:
        sentences.append(_of_candidate(known[c.reference], known[c.name], c, wins, seed))
        if bad := failed((flags or {}).get(c.name, ())):
            sentences.append(f"But these checks for reward hacking fail for {display(c.name)}: {', '.join(bad)}.")
    if len(candidates) > 1:
        sentences.append(_best(known, candidates, flags or {}, wins, seed))
    return " ".join(sentences)


def scores_for(systems: Sequence[System], candidates: Sequence[Candidate]) -> list[str]:
    """The scores of the headline, in its order, that all systems have and that no candidate is trained on."""
    shared = [name for name in HEADLINE_ORDER if all(name in s.score_names for s in systems)]
    return [name for name in shared if all(c.is_independent(name) for c in candidates)]


def _of_candidate(a: System, b: System, candidate: Candidate, wins: Sequence[Wins], seed: int) -> str:
    independent = scores_for((a, b), (candidate,))
    usable = [name for name in independent if has_headroom(a, name)]
    best = next((w for w in found_wins(wins, b.name, a.name) if candidate.is_independent(w.by) and w.share.value is not None), None)
    told = ""
    if independent and independent[0] not in usable:
        already = cell(figures(a, seed)[independent[0]], True)
        told = f"The {label(independent[0])} cannot show a gain: {display(a.name)} is at {already} already. "
        usable = [] if best else usable or independent
    if usable:
        return told + _changed(a, b, usable[0], seed)
    if best:
        return told + _win_sentence(best)
    own = next((name for name in HEADLINE_ORDER if name in a.score_names and name in b.score_names), None)
    if own is None:
        return f"{display(a.name)} and {display(b.name)} have no score in common: nothing can be said about quality."
    return f"{_changed(a, b, own, seed)} {display(b.name)} was trained on this score, so it says nothing about quality."


def _best(
    known: Mapping[str, System], candidates: Sequence[Candidate], flags: Mapping[str, Sequence[Flag]], wins: Sequence[Wins],
    seed: int,
) -> str:  # fmt: skip
    """Which arm is best, by a score that no arm was trained on; else by wins between them."""
    systems = [known[c.name] for c in candidates]
    start = known[candidates[0].reference]
    usable = [name for name in scores_for((start, *systems), candidates) if has_headroom(start, name)]
    if not usable:
        between = [
            w for a, b in itertools.combinations(candidates, 2) for w in found_wins(wins, b.name, a.name)
            if a.is_independent(w.by) and b.is_independent(w.by)
        ]  # fmt: skip
        if between:
            return "Between the arms: " + " ".join(_win_sentence(w) for w in between)
        return "The arms are not ranked: no score with room for a gain is independent of all of them."
    name = usable[0]
    rate = is_rate(systems, name)
    means = {s.name: figures(s, seed)[name].value for s in systems}
    order = sorted((s for s in systems if means[s.name] is not None), key=lambda s: -means[s.name])
    if len(order) < 2:
        return ""
    first, second = order[:2]
    change = difference(second, first, name, seed)
    pair = f"{display(first.name)} {number(means[first.name], rate)}, {display(second.name)} {number(means[second.name], rate)}"
    facts = f"({pair}; difference {_interval(change, rate)})"
    if not (change.has_interval and change.low > 0):
        return f"By the {label(name)}, {display(first.name)} and {display(second.name)} do not differ measurably {facts}."
    doubt = " It fails a check for reward hacking, so read its samples." if failed(flags.get(first.name, ())) else ""
    return f"Best arm by the {label(name)}: {display(first.name)} {facts}.{doubt}"


def _win_sentence(w: Wins) -> str:
    low, high = 100 * w.share.low, 100 * w.share.high
    verb = "beats" if low > 50 else "loses to" if high < 50 else "does not measurably beat"
    return (
        f"{display(w.a)} {verb} {display(w.b)}: it wins {100 * w.share.value:.1f} % of {w.share.n} comparisons by the {w.judge} "
        f"(95 % interval {low:.1f} to {high:.1f})."
    )


def _alone(system: System, seed: int) -> str:
    name = next((s for s in HEADLINE_ORDER if s in system.score_names), None)
    if name is None:
        return f"{display(system.name)} alone, without a score."
    shown = cell(figures(system, seed)[name], is_rate((system,), name))
    return f"{display(system.name)} alone: {label(name)} {shown}."


def _interval(change: Figure, rate: bool) -> str:
    unit = " points" if rate else ""
    ends = "no interval, since all prompts changed by the same amount"
    if change.has_interval:
        ends = f"95 % interval {signed(change.low, rate)} to {signed(change.high, rate)}"
    return f"{signed(change.value, rate)}{unit}, {ends}, {change.n} prompts"


def _changed(a: System, b: System, name: str, seed: int) -> str:
    change, rate = difference(a, b, name, seed), is_rate((a, b), name)
    if change.value is None:
        return f"No prompt has a {label(name)} for both systems: nothing can be said about quality."
    x, y, _ = paired(a, b, name)
    before, after = (number(float(v.mean()), rate) for v in (x, y))
    facts = f"({_interval(change, rate)})"
    if change.has_interval and (change.low > 0 or change.high < 0):
        verb = "raises" if change.low > 0 else "lowers"
        return f"{display(b.name)} {verb} the {label(name)} from {before} to {after} {facts}."
    return (
        f"{display(b.name)} does not measurably change the {label(name)}: {before} for {display(a.name)}, "
        f"{after} for {display(b.name)} {facts}."
    )
