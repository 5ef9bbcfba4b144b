"""Prompts as files: a family (zh, en, embedded, or the user's own) is a folder with one Jinja template per role."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif_jax.errors import UserError, read_text, shown
from rlaif_jax.feedback.llm import LLMRequest, Message
from rlaif_jax.feedback.prompts.sandbox import Template, fence
from rlaif_jax.language import Language, language_of

ROLES = (
    "candidate", "positive", "negative", "debate_judge", "debate_review", "detector", "compare", "generator", "confess", "advise",
    "principle_review", "optimise",
)  # fmt: skip
_OLD_NAMES = {"debate_judge": "judge", "debate_review": "reflect", "principle_review": "reflector"}  # old file names, accepted
_logger = logging.getLogger(__name__)
_HERE = Path(__file__).parent
_TAG = re.compile(r"\{[%{#].*?[%}#]\}", re.DOTALL)
_TURN = re.compile(r"^%% (system|user|assistant)\n", re.MULTILINE)


def family_for(language: Language) -> str:
    """The bundled prompt family for chat models in a language."""
    return language.name


__all__ = ["ROLES", "Prompts", "family_for", "fence", "load_prompts"]


class Prompts:
    """The templates of one family, or of a user's folder.

    Attributes:
      family: name of the family, or the folder.
      hash: hash of the templates, for cache keys and reports.
      language: language of the templates.
    """

    def __init__(self, family: str):
        folder = _HERE / family if (_HERE / family).is_dir() else Path(family).expanduser()
        files = _files(family, folder)
        texts = {role: read_text(path) for role, path in files.items()}
        self.family, self.hash = family, hashlib.sha256("\0".join(texts.values()).encode("utf-8")).hexdigest()[:16]
        self.language = language_of(_TURN.sub("", _TAG.sub("", "".join(texts.values()))))
        self._files = files
        self._templates = {role: Template(text, str(files[role])) for role, text in texts.items()}
        if folder.parent != _HERE:
            for role, template in self._templates.items():
                _check_names(str(files[role]), template)

    def shows(self, role: str, field: str) -> bool:
        """Whether the template of a role uses a field."""
        return field in self._templates[role].names

    def messages(self, role: str, *, system: str = "", **fields: Any) -> tuple[Message, ...]:
        """The chat of a role: one user message, or several turns if the template has lines such as "%% user".

        Such marks are removed from the fields, so that data cannot start a turn. `system` is the system turn of the request
        (`query`). A template without that field shows it at the beginning of the query, so that it is never lost.
        """
        if system and not self.shows(role, "system") and "query" in fields:
            fields["query"] = f"{system}\n\n{fields['query']}"
        fields["system"] = system
        text = self._templates[role].render({name: _harmless(value) for name, value in fields.items()})
        pieces = _TURN.split(f"%% user\n{text}")[1:]
        chat = tuple(
            Message(who, content.strip()) for who, content in zip(pieces[::2], pieces[1::2], strict=True) if content.strip()
        )
        if not chat:
            raise UserError(f"{self._files[role]}: it renders to an empty chat")
        return chat

    def render(self, role: str, **fields: Any) -> str:
        """The chat of a role as one text, for people to read."""
        return "\n".join(m.content for m in self.messages(role, **fields))

    def request(self, role: str, *, max_tokens: int, temperature: float = 0.0, seed: int = 0, **fields: Any) -> LLMRequest:
        """The request for a role, made from its template and the fields."""
        return LLMRequest(self.messages(role, **fields), max_tokens, temperature, seed, self.hash)


def _files(family: str, folder: Path) -> dict[str, Path]:
    """The template file of each role, in the order of ROLES. UserError where one is missing."""
    files = {role: folder / f"{role}.j2" for role in ROLES}
    old = {role: folder / f"{name}.j2" for role, name in _OLD_NAMES.items()}
    renamed = {role: path for role, path in old.items() if path.exists() and not files[role].exists()}
    if renamed:
        changes = ", ".join(f"{path.name} is now {role}.j2" for role, path in renamed.items())
        _logger.warning("prompts %s: these old file names are still accepted: %s", folder, changes)
    files |= renamed
    missing = [path.name for path in files.values() if not path.exists()]
    if missing:
        known = sorted(p.name for p in _HERE.iterdir() if (p / "detector.j2").exists())
        raise UserError(
            f"prompts {family!r}: expected one of {', '.join(known)}, or a folder with a template for every role; "
            f"{folder} lacks {', '.join(missing)}"
        )
    return files


def _check_names(where: str, template: Template) -> None:
    """UserError for a field that no template of the bundled families has: it would fail at the first request."""
    known = _known_names()
    for name in sorted(template.names - known):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the fields of prompts are {', '.join(sorted(known))}"
        raise UserError(f"{where}: unknown field {shown(name)}; {hint}")


@functools.cache
def _known_names() -> frozenset[str]:
    files = sorted(path for path in _HERE.glob("*/*.j2"))
    return frozenset({"system"}).union(*(Template(read_text(path), path.name).names for path in files))


def _harmless(value: Any) -> Any:
    """A value of a template without marks of turns, also inside lists, mappings and records."""
    if isinstance(value, str):
        return re.sub(r"^%%", "％％", value, flags=re.MULTILINE)
    if isinstance(value, Mapping):
        return {_harmless(name): _harmless(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_harmless(v) for v in value]
    if dataclasses.is_dataclass(value):
        return {field.name: _harmless(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


@functools.lru_cache
def load_prompts(family: str) -> Prompts:
    """The templates of a family. Read once and cached."""
    return Prompts(family)
