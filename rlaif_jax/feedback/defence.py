"""What a judge sees of an answer. One rule for verdicts, comparisons and debates.

An answer that argues with its judge is judged twice, with and without its pleas (`language/pleas.py`), and the lower verdict
counts. If nothing but pleas remains, the answer is bad, and nobody is asked. Words can be chosen that no filter knows, so under
"strict" an answer is also judged without every sentence that holds a word of a judge's business, where the request holds none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlaif_jax.feedback.agents import Agent
from rlaif_jax.language.pleas import without_doubt, without_pleas

DEFENCES = ("strict", "filter", "none")


def bare(agent: Agent, query: str, response: str) -> str:
    """The answer without its pleas; the answer as it is under defence "none"."""
    return response if agent.defence == "none" else without_pleas(response, query)


def plainest(agent: Agent, query: str, response: str) -> str:
    """The answer without all that the agent's defence takes out of it: pleas, and under "strict" doubtful sentences."""
    rest = bare(agent, query, response)
    return without_doubt(rest, query) if agent.defence == "strict" else rest


def versions(agent: Agent, answers: Sequence[tuple[str, str]]) -> tuple[list[tuple[int, str]], list[list[int]]]:
    """The texts to judge in place of the answers to queries, each with the number of its answer; and for each answer the places of
    its texts: one, or two if the defence takes something out of it, or none if nothing is left."""
    rests = [plainest(agent, query, response) for query, response in answers]
    changed = [rest != response for rest, (_, response) in zip(rests, answers, strict=True)]
    empty = [c and not re.search(r"\w", rest) for rest, c in zip(rests, changed, strict=True)]
    texts = [(i, response) for i, (_, response) in enumerate(answers) if not empty[i]]
    texts += [(i, rest) for i, rest in enumerate(rests) if changed[i] and not empty[i]]
    places: list[list[int]] = [[] for _ in answers]
    for place, (i, _) in enumerate(texts):
        places[i].append(place)
    return texts, places
