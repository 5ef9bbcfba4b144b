"""Diversity of a set of texts, counted on characters or words as the language does: distinct-n, repetition, duplicates.

`language` None: that of the texts' script.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rlaif_jax.evaluation.scores import Figure, jackknife_figure, rate_figure
from rlaif_jax.language import Language, language_of


def distinct_n(texts: Sequence[str], n: int, language: Language | None = None) -> float | None:
    """Different n-grams over all n-grams of the set (Li et al. 2016, arXiv 1510.03055); None without any.

    It falls as the set grows: compare only sets of the same number of texts.
    """
    return distinct_figure(texts, n, language).value


def distinct_figure(texts: Sequence[str], n: int, language: Language | None = None) -> Figure:
    """distinct-n with a jackknife 95 % interval. Figure.n counts texts, also those too short to have an n-gram."""
    language = language or language_of("".join(texts))
    return _type_token_figure([language.ngrams(text, n) for text in texts])


def unique_figure(texts: Sequence[str]) -> Figure:
    """Different texts over all texts (1 = no duplicates; white space aside), with a jackknife 95 % interval."""
    return _type_token_figure([["".join(text.split())] for text in texts])


def _type_token_figure(items: Sequence[Sequence[str]]) -> Figure:
    """Different items over all items of the set, and the same with each text left out in turn."""
    own = [Counter(row) for row in items]
    everywhere: Counter[str] = Counter()
    for counts in own:
        everywhere.update(counts)
    total, types = everywhere.total(), len(everywhere)
    if total == 0:
        return Figure(None, None, None, 0)
    # Leaving text i out loses the types that stand nowhere else.
    lost = np.array([sum(everywhere[k] == c for k, c in counts.items()) for counts in own], dtype=np.float64)
    rest = total - np.array([counts.total() for counts in own], dtype=np.float64)
    left_out = np.divide(types - lost, rest, out=np.full(len(own), np.nan), where=rest > 0)
    return jackknife_figure(types / total, left_out)


def repeats_itself(text: str, n: int = 4, language: Language | None = None) -> bool:
    """Whether some n-gram occurs in the text more than once."""
    grams = (language or language_of(text)).ngrams(text, n)
    return len(set(grams)) < len(grams)


def self_repetition_figure(texts: Sequence[str], n: int = 4, language: Language | None = None) -> Figure:
    """Share of the texts that repeat an n-gram, with its Wilson 95 % interval."""
    language = language or language_of("".join(texts))
    return rate_figure([float(repeats_itself(text, n, language)) for text in texts])
