"""`--set a.b=value`: all of them are applied to the plain form of a config, which is then checked once.

So their order matters for one field only (its last value counts), and two sections that need one another can be set together.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence
from typing import Any

from rlaif_jax.config import old_names
from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.values import Text, default_of, fields_of, from_dict, known_field, parsed, plain, section_type
from rlaif_jax.errors import UserError


def overridden(cfg: RunConfig, items: Sequence[str], say: Callable[[str], None] | None = None) -> RunConfig:
    """The config with these fields changed. UserError names the field."""
    if not items:
        return cfg
    say = say or (lambda _: None)
    values = plain(cfg)
    for item in items:
        name, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"--set {item!r}: expected field=value, for example --set sft.train.steps=100")
        path = old_names.upgraded_path(name, say).split(".")
        if path[0] == "arms" and not values["arms"]:
            values["arms"] = plain(cfg.all_arms())
        _set(values, RunConfig, path, _Override(name, text, values, say))
    _drop_arms(values, say)
    return from_dict(RunConfig, values)


def _drop_arms(values: dict[str, Any], say: Callable[[str], None]) -> None:
    """Takes out the arms whose only reward comes from a section that was set to none."""
    for section, source in (("reward", "reward_model"), ("judge", "judge")):
        if not (isinstance(values[section], Text) and parsed(values[section]) is None):
            continue
        for name, arm in list(values["arms"].items()):
            if isinstance(arm, dict) and arm.get(source) and not arm.get("functions") and not _other(arm, source):
                say(f"note: {section}=none takes out arms.{name} too, whose reward it is")
                del values["arms"][name]


def _other(arm: dict[str, Any], source: str) -> Any:
    return arm.get("judge" if source == "reward_model" else "reward_model")


@dataclasses.dataclass(frozen=True)
class _Override:
    """One item: the field as it was typed, its value, the plain form of the whole config, and where notes go."""

    full: str
    text: str
    root: dict[str, Any]
    say: Callable[[str], None]

    def above(self, rest: Sequence[str]) -> str:
        """The section that the rest of the path is looked for in."""
        return ".".join(self.full.split(".")[: -len(rest)])


def _set(values: dict[str, Any], kind: type, path: Sequence[str], item: _Override) -> None:
    """Changes one field of a section's plain form in place."""
    name, rest = old_names.current_name(kind, path[0], item.say), path[1:]
    known_field(name, kind, item.full)
    hint = fields_of(kind)[name]
    if not rest:
        values[name] = Text(old_names.current_value(kind, name, item.text))
        return
    if typing.get_origin(hint) is dict:
        _set_entry(values[name], typing.get_args(hint)[1], rest, item)
        return
    inner = section_type(hint)
    if inner is None:
        raise UserError(f"--set {item.full}: {item.above(rest)} has no fields")
    if isinstance(values[name], Text):
        values[name] = parsed(values[name])
    if values[name] is None:
        if name != "rl":  # an arm without RL settings of its own has those of the run
            at = item.above(rest)
            raise UserError(f"--set {item.full}: {at} is none in this config; add the section with --set {at}={{}} before it")
        values[name] = _copy(item.root["rl"])
    _set(values[name], inner, rest, item)


def _set_entry(entries: dict[str, Any], kind: Any, path: Sequence[str], item: _Override) -> None:
    """Changes an entry of a mapping such as `arms`, or a field of one; "none" takes the entry out."""
    name, rest = path[0], path[1:]
    if not rest:
        if parsed(item.text) is None:
            entries.pop(name, None)
        else:
            entries[name] = Text(item.text)
        return
    inner = section_type(kind)
    if inner is None:
        raise UserError(f"--set {item.full}: {item.above(rest)} has no fields")
    _set(entries.setdefault(name, _Fresh(inner)), inner, rest, item)


class _Fresh(dict):
    """The plain form of a new entry: fields that are not set yet have their defaults, also where one is looked into."""

    def __init__(self, kind: type):
        super().__init__()
        self._kind = kind

    def __missing__(self, name: str) -> Any:
        self[name] = default_of(next(f for f in dataclasses.fields(self._kind) if f.name == name))
        return self[name]


def _copy(values: Any) -> Any:
    return {k: _copy(v) for k, v in values.items()} if isinstance(values, dict) else values
