"""Every field of a config with its type, default and meaning, read from the section classes themselves."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from typing import Any

from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.values import default_of, fields_of, section_type
from rlaif_jax.ranges import hints_of, range_of


@dataclasses.dataclass(frozen=True)
class Field:
    """One field: its dotted name ("arms.NAME.judge"), type with its range, default (None where it has none) and meaning."""

    name: str
    kind: str
    default: Any
    doc: str


def all_fields(kind: type = RunConfig, prefix: str = "", given: Any = None) -> list[Field]:
    """Every field of a section and of the sections in it, in order. `given`: the defaults that the section around it gives."""
    found = []
    hints, docs = fields_of(kind), field_docs(kind)
    defaults = {f.name: default_of(f) for f in dataclasses.fields(kind)} | (given or {})
    for field in dataclasses.fields(kind):
        name, hint = f"{prefix}{field.name}", hints[field.name]
        inner = section_type(hint)
        entry = section_type(typing.get_args(hint)[1]) if typing.get_origin(hint) is dict else None
        limits = range_of(hints_of(kind)[field.name])
        word = _words(hint) if limits is None else f"{_words(hint)}, {limits}"
        found.append(Field(name, word, None if inner else defaults[field.name], docs.get(field.name, "")))
        if name == "arms.NAME.rl":  # the fields of the run's `rl`, which are listed there
            continue
        if inner is not None:
            found += all_fields(inner, f"{name}.", defaults[field.name])
        elif entry is not None:
            found += all_fields(entry, f"{name}.NAME.")
    return found


def _words(hint: Any) -> str:
    """A type as people write it: "float", "dict[str, int]", "CriticConfig or none"."""
    options = typing.get_args(hint) if not hasattr(hint, "__name__") or "|" in str(hint) else ()
    if options and typing.get_origin(hint) is not dict:
        return " or ".join("none" if o is type(None) else _words(o) for o in options)
    return str(hint).replace("typing.", "") if typing.get_origin(hint) else getattr(hint, "__name__", str(hint))


@functools.cache
def field_docs(kind: type) -> dict[str, str]:
    """Field name -> what it means: from "Attributes:" of the class's docstring, else from the comment beside the field."""
    found = {}
    for match in re.finditer(r"^    (\w+): [^#\n]*  # (.+)$", inspect.getsource(kind), re.MULTILINE):
        found[match[1]] = match[2].strip()
    text = inspect.cleandoc(kind.__doc__ or "")
    block = text.partition("Attributes:\n")[2]
    for match in re.finditer(r"^  (\w+(?:, \w+)*): ((?:.+)(?:\n    .+)*)", block, re.MULTILINE):
        for name in match[1].split(", "):
            found[name] = " ".join(match[2].split())
    return found
