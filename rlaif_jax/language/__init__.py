"""Languages of a task, one pack each: counting, constraints, and the few sentences that the library itself sends to a model.

Language-specific text is found only in this package, the corpus, the prompt files and the lists of rules.
"""

from __future__ import annotations

import unicodedata

from rlaif_jax.errors import UserError
from rlaif_jax.language.base import Language
from rlaif_jax.language.en import EN
from rlaif_jax.language.zh import ZH

LANGUAGES = {language.name: language for language in (ZH, EN)}
_HAN_SHARE = 0.2  # low, since one Chinese character carries as much meaning as several Latin letters


def language_of(text: str) -> Language:
    """The language of a text by its script: Chinese if at least a fifth of its letters are Han characters, else English."""
    letters = [c for c in text if c.isalpha()]
    return ZH if letters and sum(map(is_han, letters)) >= _HAN_SHARE * len(letters) else EN


def is_han(character: str) -> bool:
    """Whether it is a Chinese character (Han script, not punctuation)."""
    return unicodedata.name(character, "").startswith(("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH"))


def get_language(name: str, text: str = "") -> Language:
    """The language named "zh" or "en"; "auto": the language of `text` (see `language_of`). UserError for other names."""
    if name == "auto":
        return language_of(text)
    if name not in LANGUAGES:
        raise UserError(f"language is {name!r}; expected {', '.join(LANGUAGES)} or auto")
    return LANGUAGES[name]


__all__ = ["EN", "LANGUAGES", "ZH", "Language", "get_language", "is_han", "language_of"]
