"""Diversity of a set of texts: distinct-n, repetition and duplicates, on characters or words depending on the language.

`language` None = the language of the texts' script.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rlaif_jax.evaluation.scores import Figure, jackknife_figure, rate_figure
from rlaif_jax.language import Language, language_of


def distinct_n(texts: Sequence[str], n: int, language: Language | None = None) -> float | None:
    """Different n-grams divided by all n-grams of the set (Li et al. 2016, arXiv 1510.03055); None without any.

    It falls as the set grows, so compare only sets with the same number of texts.
    """
    return distinct_figure(texts, n, language).value


def distinct_figure(texts: Sequence[str], n: int, language: Language | None = None) -> Figure:
    """distinct-n with a jackknife 95 % interval. Figure.n counts all texts, even those too short for an n-gram."""
    language = language or language_of("".join(texts))
    return _type_token_figure([language.ngrams(text, n) for text in texts])


def unique_figure(texts: Sequence[str]) -> Figure:
    """Different texts divided by all texts (1 = no duplicates), ignoring white space, with a jackknife 95 % interval."""
    return _type_token_figure([["".join(text.split())] for text in texts])


def _type_token_figure(items: Sequence[Sequence[str]]) -> Figure:
    """Different items divided by all items of the set, with a jackknife interval: each text is left out in turn."""
    own = [Counter(row) for row in items]
    everywhere: Counter[str] = Counter()
    for counts in own:
        everywhere.update(counts)
    total, types = everywhere.total(), len(everywhere)
    if total == 0:
        return Figure(None, None, None, 0)
    # Leaving out text i loses the items that no other text has.
    lost = np.array([sum(everywhere[k] == c for k, c in counts.items()) for counts in own], dtype=np.float64)
    rest = total - np.array([counts.total() for counts in own], dtype=np.float64)
    left_out = np.divide(types - lost, rest, out=np.full(len(own), np.nan), where=rest > 0)
    return jackknife_figure(types / total, left_out)


def repeats_itself(text: str, n: int = 4, language: Language | None = None) -> bool:
    """Whether the text has an n-gram more than once."""
    grams = (language or language_of(text)).ngrams(text, n)
    return len(set(grams)) < len(grams)


def self_repetition_figure(texts: Sequence[str], n: int = 4, language: Language | None = None) -> Figure:
    """Share of the texts that have an n-gram more than once, with its Wilson 95 % interval."""
    language = language or language_of("".join(texts))
    return rate_figure([float(repeats_itself(text, n, language)) for text in texts])
