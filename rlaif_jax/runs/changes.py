"""What a changed config costs in a run folder: only the stages that have read the changed fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.stages import Stage, needed_by, stages_of
from rlaif_jax.config.values import to_dict
from rlaif_jax.errors import UserError


def changed_fields(before: RunConfig, after: RunConfig) -> list[str]:
    """The fields in which two configs differ, as "data.pairs.path"."""
    return sorted(_differences(*(json.loads(json.dumps(to_dict(cfg))) for cfg in (before, after))))


def refuse_outdated(out: Path, before: RunConfig, changed: list[str], folder_of: Callable[[str], Path]) -> None:
    """UserError if a stage that has begun in the run folder `out` has read one of these fields with another value."""
    begun = [stage for stage in stages_of(before).values() if has_begun(folder_of(stage.name))]
    outdated = {stage.name: [f for f in changed if stage.is_outdated_by(before, f)] for stage in begun}
    outdated = {name: fields for name, fields in outdated.items() if fields}
    if not outdated:
        return
    fields = list(dict.fromkeys(field for read in outdated.values() for field in read))
    again = _with_followers(before, {name: stage for name, stage in stages_of(before).items() if name in outdated}, begun)
    raise UserError(
        f"{out} holds a run with other values of {', '.join(fields[:5])}{' ...' if len(fields) > 5 else ''}, and "
        f"{', '.join(outdated)} {'has' if len(outdated) == 1 else 'have'} used them. Choose another --out; or, to do these stages "
        f"again, move {', '.join(str(folder_of(name)) for name in again)} away"
    )


def has_begun(folder: Path) -> bool:
    """Whether a stage has left anything in its folder but the note that it begins."""
    return folder.exists() and any(file.name != "begun.json" for file in folder.iterdir())


def _with_followers(cfg: RunConfig, outdated: Mapping[str, Stage], begun: list[Stage]) -> list[str]:
    """The names of these stages and of those that have begun and use their results, in order."""
    again = set(outdated)
    for stage in begun:
        if again & {needed.name for needed in needed_by(cfg, stage)}:
            again.add(stage.name)
    return [stage.name for stage in begun if stage.name in again]


def _differences(a: Any, b: Any, path: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for k in {*a, *b} for d in _differences(a.get(k), b.get(k), f"{path}.{k}" if path else k)]
    return [] if a == b else [path]
