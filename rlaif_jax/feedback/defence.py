"""What a judge sees of an answer. One rule for verdicts, comparisons and debates.

An answer that argues with its judge is judged twice, with and without its pleas (`language/pleas.py`), and the lower verdict
counts. If nothing but pleas remains, the answer is bad, and nobody is asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlaif_jax.feedback.agents import Agent
from rlaif_jax.language.pleas import without_pleas

DEFENCES = ("filter", "none")


def bare(agent: Agent, response: str) -> str:
    """The answer without its pleas; the answer as it is under defence "none"."""
    return without_pleas(response) if agent.defence == "filter" else response


def versions(agent: Agent, responses: Sequence[str]) -> tuple[list[tuple[int, str]], list[list[int]]]:
    """The texts to judge in place of the answers, each with the number of its answer; and for each answer the places of its texts.

    An answer that argues has two places, with and without its pleas; none, if it is nothing but pleas.
    """
    rests = [bare(agent, response) for response in responses]
    empty = [rest != response and not re.search(r"\w", rest) for rest, response in zip(rests, responses, strict=True)]
    texts = [(i, response) for i, response in enumerate(responses) if not empty[i]]
    texts += [(i, rest) for i, rest in enumerate(rests) if rest != responses[i] and not empty[i]]
    places: list[list[int]] = [[] for _ in responses]
    for place, (i, _) in enumerate(texts):
        places[i].append(place)
    return texts, places
