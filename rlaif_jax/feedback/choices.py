"""Log-probabilities of a few allowed words, from the likeliest first tokens that a chat API names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from rlaif_jax.feedback.json_replies import plain
from rlaif_jax.language import LANGUAGES

_AROUND = re.compile(r"\A[\W_\u0120\u010a]+|[\W_]+\Z")  # space and marks; in some vocabularies these two letters mean space
_MOST_UNSURE = 0.25  # largest share that a word outside the list could have, for the row to be valid


def choice_row(top: Sequence[tuple[str, float]], choices: Sequence[str]) -> list[float]:
    """The log-probability of each choice, from the (token, log-probability) of the likeliest tokens.

    All spellings of a choice count together: "Good", " good", "GOOD", "**Good", and words of a language for it. Without one, the
    beginning of the word counts. A choice that is not in the list gets an upper bound of its probability. All are NaN if no
    choice is in the list, or if the bound is too large for a verdict.
    """
    found = [_logprob(top, choice) for choice in choices]
    seen = [lp for lp in found if lp is not None]
    if not seen:
        return [math.nan] * len(choices)
    rest = max(1.0 - sum(math.exp(lp) for _, lp in top), 1e-6)
    bound = min(rest, *(math.exp(lp) for _, lp in top))  # a token that is not listed is less likely than all that are
    if len(seen) < len(choices) and bound / (bound + math.exp(max(seen))) > _MOST_UNSURE:
        return [math.nan] * len(choices)
    return [math.log(max(bound, 1e-12)) if lp is None else lp for lp in found]


def _logprob(top: Sequence[tuple[str, float]], choice: str) -> float | None:
    words = {choice.lower()} | {w for language in LANGUAGES.values() for w in language.verdict_words.get(choice, ())}
    spelled = [lp for token, lp in top if _AROUND.sub("", plain(token)).lower() in words]
    begun = [lp for token, lp in top if token.strip() and choice.startswith(token.strip())]
    if spelled:
        return float(np.logaddexp.reduce(spelled))
    return max(begun) if begun else None
