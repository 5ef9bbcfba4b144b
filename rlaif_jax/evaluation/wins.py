"""Win rates: how often the answers of one system are preferred to those of another, or to the data's own best answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlaif_jax.evaluation.compare import System, win_rate
from rlaif_jax.evaluation.hacking import PARTS
from rlaif_jax.evaluation.scores import Figure
from rlaif_jax.evaluation.text import label

ASKED = {"judge": "judge, asked in both orders", "grader": "grader's scores", "reward": "reward model's scores"}


@dataclass(frozen=True)
class Wins:
    """The share of prompts on which the answer of `a` is preferred to that of `b`, ties one half.

    `by` is the score that compares ("judge", "grader", "reward" or another), `asked` whether it was asked about both answers at a
    time, or compared their scores.
    """

    a: str
    b: str
    by: str
    share: Figure
    asked: bool = True

    @property
    def judge(self) -> str:
        """Who compares, in words."""
        return ASKED.get(self.by, label(self.by)) if self.asked else label(self.by)


def found_wins(wins: Iterable[Wins], a: str, b: str) -> list[Wins]:
    """The win rates of a against b."""
    return [w for w in wins if (w.a, w.b) == (a, b)]


def score_wins(pairs: Sequence[tuple[System, System]], known: Sequence[Wins] = ()) -> list[Wins]:
    """Win rates of b against a, for every pair (a, b), by the scores that both have and that are no yes-or-no verdicts.

    `known`: comparisons that were made already; a score is left out where its judge has compared the pair.
    """
    found = []
    for a, b in pairs:
        done = {w.by for w in found_wins(known, b.name, a.name)}
        for name in a.score_names:
            verdicts = name in PARTS.values() or name in ("excellent", "compliance", "debate")
            if name in b.score_names and not verdicts and PARTS.get(name, name) not in done:
                found.append(Wins(b.name, a.name, name, win_rate(a, b, name), asked=False))
    return found
