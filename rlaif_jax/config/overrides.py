"""`--set a.b=value`: all of them are applied to the plain form of a config, which is then checked once.

A section is set before its fields, so the order of items matters for one field only: its last value counts.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlaif_jax.config import old_names
from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.values import Text, default_of, fields_of, from_dict, known_field, parsed, plain, section_type
from rlaif_jax.errors import UserError, holds_secret, shown
from rlaif_jax.rewards.function import FunctionConfig
from rlaif_jax.trainers.config import RlConfig

_MISSING = object()


def overridden(cfg: RunConfig, items: Sequence[str], say: Callable[[str], None] | None = None) -> RunConfig:
    """The config with these fields changed. UserError names the field.

    A field of `rl` is changed in each arm's own `rl` too, unless the config gives the arm another value; `say` gets a note then.
    """
    if not items:
        return cfg
    say = say or (lambda _: None)
    values = plain(cfg)
    split = []
    for item in items:
        name, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"--set {shown(item)}: expected field=value, for example --set sft.train.steps=100")
        if len(name) > 200 or holds_secret(name):
            raise UserError(f"--set: unknown field {shown(name)}; expected field=value, for example --set sft.train.steps=100")
        split.append((old_names.upgraded_path(name, say).split("."), _Override(name, text, values, say)))
    for path, override in sorted(split, key=lambda pair: len(pair[0])):
        if path[0] == "arms" and not values["arms"]:
            values["arms"] = plain(cfg.all_arms())
        _set(values, RunConfig, path, override)
        if path[0] == "rl" and len(path) > 1:
            _set_in_arms(cfg, values, path, override)
    _drop_arms(values, say)
    return from_dict(RunConfig, values)


def _set_in_arms(cfg: RunConfig, values: dict[str, Any], path: Sequence[str], item: _Override) -> None:
    """Changes a field of `rl` in the arms that have their own `rl` with the same value of that field."""
    quiet = dataclasses.replace(item, say=lambda _: None)
    for name, arm in cfg.arms.items():
        if arm.rl is None or not isinstance(values["arms"], Mapping) or name not in values["arms"]:
            continue
        own = _find(plain(arm.rl), RlConfig, path[1:])
        if own == _find(plain(cfg.rl), RlConfig, path[1:]):
            _set(values, RunConfig, ["arms", name, *path], quiet)
        else:
            field = ".".join(["arms", name, *path])
            item.say(f"note: {field} keeps its own value, {shown(own)}; to change it: --set {field}={item.text}")


def _find(values: Any, kind: Any, path: Sequence[str]) -> Any:
    """The value at a path of a section's plain form, _MISSING where there is none."""
    for name in path:
        if kind is None or not isinstance(values, Mapping):
            return _MISSING
        name = old_names.current_name(kind, name, lambda _: None)
        values, kind = values.get(name, _MISSING), section_type(fields_of(kind).get(name))
    return values


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
    """One item: the field as the user typed it, its value, the plain form of the config, and where notes go."""

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
        values[name] = _opened(values[name], None, rest, item)
        _set_entry(values[name], typing.get_args(hint)[1], rest, item)
        return
    inner = section_type(hint)
    if inner is None:
        raise UserError(f"--set {item.full}: {item.above(rest)} has no fields")
    if values[name] is None and name == "rl":  # an arm without RL settings of its own has those of the run
        values[name] = _copy(item.root["rl"])
    values[name] = _opened(values[name], inner, rest, item)
    _set(values[name], inner, rest, item)


def _set_entry(entries: dict[str, Any], kind: Any, path: Sequence[str], item: _Override) -> None:
    """Changes an entry of a mapping such as `arms`, or a field of one; "none" takes the entry out."""
    name, rest = path[0], path[1:]
    if not rest:
        if parsed(item.text) is None and kind is not Any:  # an entry of any kind may be none
            entries.pop(name, None)
        else:
            entries[name] = Text(item.text)
        return
    inner = section_type(kind)
    if inner is None:
        raise UserError(f"--set {item.full}: {item.above(rest)} has no fields")
    entries[name] = _opened(entries.get(name, {}), inner, rest, item)
    _set(entries[name], inner, rest, item)


def _opened(value: Any, kind: type | None, rest: Sequence[str], item: _Override) -> dict[str, Any]:
    """A section's plain form, ready for one of its fields to be set; `kind` None is a mapping by name."""
    value, at = parsed(value) if isinstance(value, Text) else value, item.above(rest)
    if kind is FunctionConfig and (callable(value) or isinstance(value, str)):
        value = {"function": value}
    if value is None:
        raise UserError(f"--set {item.full}: {at} is none in this config; add the section with --set {at}={{}}")
    if not isinstance(value, Mapping):
        raise UserError(f"--set {item.full}: {at} is {shown(value)}, which has no fields")
    return dict(value) if kind is None else _Fresh(kind, value)


class _Fresh(dict):
    """A section's plain form in which fields that are not set yet have their defaults."""

    def __init__(self, kind: type, values: Mapping[str, Any]):
        super().__init__(values)
        self._kind = kind

    def __missing__(self, name: str) -> Any:
        self[name] = default_of(next(f for f in dataclasses.fields(self._kind) if f.name == name))
        return self[name]


def _copy(values: Any) -> Any:
    return {k: _copy(v) for k, v in values.items()} if isinstance(values, dict) else values
