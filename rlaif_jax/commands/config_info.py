"""`rlaif config list|show|diff`: all fields of a config, the values of one config, and the differences of two."""

from __future__ import annotations

from typing import Any

import yaml
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from rlaif_jax.config.describe import all_fields
from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.values import to_dict


def list_fields(words: str, console: Console) -> None:
    """Prints every field whose name contains `words` (all fields if empty), with type, default and meaning."""
    columns = [Column(name, overflow="fold") for name in ("field", "type", "default", "meaning")]
    table = Table(*columns, title="Config fields. Set one with --set FIELD=VALUE")
    for field in all_fields():
        if words in field.name:
            default = "" if field.default is None else repr(field.default)
            table.add_row(Text(field.name), Text(field.kind), Text(default), Text(field.doc))
    console.print(table)


def as_yaml(cfg: RunConfig) -> str:
    """A config with all of its fields as YAML, which `rlaif run` accepts."""
    return yaml.safe_dump(to_dict(cfg), sort_keys=False, allow_unicode=True)


def differences(a: Any, b: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """(field, value in a, value in b) for every field that differs between two configs in plain form."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = dict.fromkeys([*a, *b])
        return [d for name in names for d in differences(a.get(name), b.get(name), f"{path}.{name}" if path else name)]
    return [] if a == b else [(path, a, b)]


def print_differences(a: RunConfig, b: RunConfig, console: Console) -> None:
    """Prints the fields in which two configs differ."""
    found = differences(to_dict(a), to_dict(b))
    if not found:
        console.print("the configs are equal")
        return
    table = Table("field", a.name, b.name)
    for name, one, two in found:
        table.add_row(Text(name), Text(str(one)), Text(str(two)))
    console.print(table)
