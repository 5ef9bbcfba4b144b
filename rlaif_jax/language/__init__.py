"""Languages of a task: counting, constraints and the library's own words for the model, in one pack per language.

A task's language is data: nothing outside this package, the corpus, the prompt files and the lists of rules holds a word of it.
"""

from __future__ import annotations

import unicodedata

from rlaif_jax.errors import UserError
from rlaif_jax.language.base import Language
from rlaif_jax.language.en import EN
from rlaif_jax.language.zh import ZH

LANGUAGES = {language.name: language for language in (ZH, EN)}
_HAN_SHARE = 0.2  # one Chinese character says as much as several Latin letters


def language_of(text: str) -> Language:
    """The language of a text by its script: Chinese where a fifth of the letters or more are Han characters."""
    letters = [c for c in text if c.isalpha()]
    return ZH if letters and sum(map(is_han, letters)) >= _HAN_SHARE * len(letters) else EN


def is_han(character: str) -> bool:
    """Whether it is a Chinese character (Han script, no punctuation)."""
    return unicodedata.name(character, "").startswith(("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH"))


def get_language(name: str, text: str = "") -> Language:
    """The language called "zh" or "en"; "auto": that of `text` (see `language_of`). UserError for other names."""
    if name == "auto":
        return language_of(text)
    if name not in LANGUAGES:
        raise UserError(f"language is {name!r}; expected {', '.join(LANGUAGES)} or auto")
    return LANGUAGES[name]


__all__ = ["EN", "LANGUAGES", "ZH", "Language", "get_language", "is_han", "language_of"]
