"""Runs the stages of a config in order. Each leaves a folder; a finished one is skipped, an interrupted one goes on.

The table of stages is `rlaif_jax.config.stages`; here is the function of each kind.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax

from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.stages import FEEDBACK, TOKENIZER, Stage, stage_of, stages_of
from rlaif_jax.errors import UserError, shown
from rlaif_jax.feedback.spending import FILE, Spending, read_spending
from rlaif_jax.runs.data_check import DataCheck, check_data
from rlaif_jax.runs.folder import Run
from rlaif_jax.runs.preflight import check_settings, check_start, problems_of
from rlaif_jax.sharding import Placement, on_first
from rlaif_jax.stages import curate, evaluate, principles, report, rl, tokenizer, train

StageFn = Callable[[Run, Stage], Mapping[str, Any]]  # gives the stage's facts
KINDS: Mapping[str, StageFn] = {
    "tokenizer": tokenizer.run, "train": train.run, "curate": curate.run, "principles": principles.run, "rl": rl.run,
    "evaluate": evaluate.run, "report": report.run,
}  # fmt: skip


def run(x: Run, names: Sequence[str] | None = None) -> None:
    """Runs these stages, or all that the config has, and prints what each took. UserError for one that it does not have."""
    if not isinstance(x, Run):
        raise UserError(f"run: expected a run, which open_run(folder, config) returns; found {shown(x)}")
    todo = list(stages_of(x.cfg).values()) if names is None else [stage_of(x.cfg, name) for name in names]
    trains = names is None or all(stage.kind in ("train", "rl", "curate", "principles") for stage in todo)
    x = dataclasses.replace(x, imports_functions=trains)
    if jax.process_count() > 1 and (uneven := uneven_batches(x.cfg, todo, x.place)):
        raise UserError(f"several processes: {uneven[0]}")
    _check_before(x, todo)
    if names is None and not x.cfg.all_arms():
        x.console.print("note: the config has no arm, so no policy is trained by RL", style="yellow")
    with x.locked():
        for stage in todo:
            if on_first(partial(_is_done, x, stage), "is done"):  # not a question that processes may answer differently
                x.console.print(f"{stage.name}: done before, skipped")
                continue
            x.require_needs(stage)
            on_first(partial(x.mark_begun, stage), "begins")
            began = time.perf_counter()
            facts = KINDS[stage.kind](x, stage)
            spending = read_spending(x.folder(stage.name) / FILE)
            if spending != Spending():
                facts = {**facts, "spending": dataclasses.asdict(spending)}
            x.mark_done(stage.name, began, facts)
            x.console.print(f"{stage.name}: done in {time.perf_counter() - began:.0f} s  {_short(facts)}", markup=False)
            if spending != Spending():
                x.console.print(f"{stage.name}: feedback model: {spending}", markup=False)
            if stage is TOKENIZER and not x.cfg.data.root:  # the bundled corpus has just been written
                _check_inputs(x, [s for s in todo if s is not TOKENIZER and not x.is_done(s.name)], data=True)


def _is_done(x: Run, stage: Stage) -> bool:
    """Whether the stage has finished. UserError if its files changed since then; only a report is simply written again."""
    if not x.is_done(stage.name):
        return False
    damage = x.damage(stage.name)
    if damage and stage.kind != "report":
        raise UserError(damage)
    if damage:
        x.console.print(f"note: {damage.partition('. ')[0]}: it is written again", style="yellow", markup=False)
    return not damage


def _check_before(x: Run, todo: Sequence[Stage]) -> None:
    """UserError for what an arm or the data lack, before hours of other stages. Stages that are done are not checked."""
    todo = [stage for stage in todo if not x.is_done(stage.name)]
    for stage in todo:
        if stage.kind == "rl":
            rl.require_memory(x, stage.name)
    if x.is_done(TOKENIZER.name):
        x.require(TOKENIZER.name)  # its files are as the stage left them
    _check_inputs(x, todo, data=bool(x.cfg.data.root) or x.is_done(TOKENIZER.name))


def _check_inputs(x: Run, todo: Sequence[Stage], data: bool) -> None:
    """UserError with every mistake in the data and settings that these stages read; prints what makes a result weaker."""
    if not todo:
        return

    def check() -> dict[str, list[str]]:
        found = check_data(x, todo) if data else DataCheck()
        random = problems_of([lambda: check_start(x.cfg)]) if any(s.kind in ("train", "rl") for s in todo) else []
        return {"warnings": found.warnings, "problems": [*random, *found.problems, *check_settings(x, todo)]}

    found = on_first(check, "check inputs")
    for text in found["warnings"]:
        x.console.print(f"note: {text}", style="yellow", markup=False, soft_wrap=True)
    if problems := found["problems"]:
        raise UserError(problems[0] if len(problems) == 1 else f"{len(problems)} mistakes:\n  " + "\n  ".join(problems))


def uneven_batches(cfg: RunConfig, stages: Iterable[Stage], place: Placement) -> list[str]:
    """The batches of these stages that several processes cannot share: they do not divide by the mesh's row shards."""
    sizes = {f"{s.name}.train.batch_size": s.train(cfg).batch_size for s in stages if s.kind == "train"}
    if cfg.feedback is not None and f"{FEEDBACK.name}.train.batch_size" in sizes:
        sizes[f"{FEEDBACK.name}.pair_batch_size"] = cfg.feedback.pair_batch_size
    return [
        f"{field} is {size}, and must be a multiple of the {place.row_shards} row shards (data x fsdp)"
        for field, size in sizes.items() if size % place.row_shards
    ]  # fmt: skip


def _short(facts: Mapping[str, Any]) -> str:
    shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items() if not isinstance(v, dict))
    return "  ".join(s for s in shown if len(s) < 100)
