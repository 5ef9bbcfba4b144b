"""The stages of one experiment. Each leaves a folder; a finished one is skipped, an interrupted one goes on.

    tokenizer -> sft [-> feedback -> curate] -> reward [-> grader] [-> judge] [-> dpo] -> rl [-> rl_judge]
    -> evaluate -> report
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax

from rlaif_jax.config import RunConfig
from rlaif_jax.errors import UserError
from rlaif_jax.run.folder import Run
from rlaif_jax.sharding import Placement, on_first
from rlaif_jax.stages.curate import run_curate
from rlaif_jax.stages.evaluate import run_evaluate
from rlaif_jax.stages.principles import run_judge
from rlaif_jax.stages.report import run_report
from rlaif_jax.stages.rl import require_memory, run_rl, run_rl_judge
from rlaif_jax.stages.train import run_dpo, run_feedback, run_grader, run_reward, run_sft, run_tokenizer

StageFn = Callable[[Run], Mapping[str, Any]]


def run(experiment: Run, todo: Mapping[str, StageFn]) -> None:
    """Runs the stages in order and prints what each took."""
    for name in ("rl", "rl_judge"):
        if name in todo:
            require_memory(experiment, name)
    if jax.process_count() > 1 and (uneven := uneven_batches(experiment.cfg, todo, experiment.place)):
        raise UserError(f"several processes: {uneven[0]}")
    for name, stage in todo.items():
        if on_first(partial(experiment.is_done, name), "is done"):  # not a question that processes may answer differently
            experiment.console.print(f"{name}: done before, skipped")
            continue
        began = time.perf_counter()
        facts = stage(experiment)
        experiment.mark_done(name, began, facts)
        experiment.console.print(f"{name}: done in {time.perf_counter() - began:.0f} s  {_short(facts)}")


def uneven_batches(cfg: RunConfig, names: Iterable[str], place: Placement) -> list[str]:
    """The batches of these stages that several processes cannot share: they do not divide by the mesh's row shards."""
    sizes = {
        f"{name}.train.batch_size": getattr(cfg, name).train.batch_size
        for name in ("sft", "feedback", "reward", "grader", "dpo") if name in names and getattr(cfg, name) is not None
    }  # fmt: skip
    if "feedback" in names:
        sizes["feedback.pair_batch_size"] = cfg.feedback.pair_batch_size
    return [
        f"{field} is {size}, and must be a multiple of the {place.row_shards} row shards (data x fsdp)"
        for field, size in sizes.items() if size % place.row_shards
    ]  # fmt: skip


def _short(facts: Mapping[str, Any]) -> str:
    shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())
    return "  ".join(s for s in shown if len(s) < 100)


ALL_STAGES: Mapping[str, StageFn] = {
    "tokenizer": run_tokenizer,
    "sft": run_sft,
    "feedback": run_feedback,
    "curate": run_curate,
    "reward": run_reward,
    "grader": run_grader,
    "judge": run_judge,
    "dpo": run_dpo,
    "rl": run_rl,
    "rl_judge": run_rl_judge,
    "evaluate": run_evaluate,
    "report": run_report,
}


def stages(cfg: RunConfig) -> dict[str, StageFn]:
    """The stages that this config needs, in order."""
    needed = {
        "sft": cfg.sft is not None,
        "feedback": cfg.feedback is not None and cfg.feedback.backend == "embedded",
        "curate": cfg.curate is not None,
        "reward": not cfg.reward.folder,
        "grader": cfg.grader is not None and not cfg.grader.folder,
        "judge": cfg.judge is not None and cfg.judge.game is not None,
        "dpo": cfg.dpo is not None,
        "rl_judge": cfg.judge is not None,
    }
    return {name: stage for name, stage in ALL_STAGES.items() if needed.get(name, True)}
