"""Checks what a config names beside its data, before the first stage: model folders, prompts, rules, functions, keys, weights."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.stages import CURATE, EVALUATE, FEEDBACK, PRINCIPLES, Stage
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.cache import RecordedLLM
from rlaif_jax.feedback.principles import read_rules
from rlaif_jax.feedback.prompts import load_prompts
from rlaif_jax.models.hf_config import read_config
from rlaif_jax.models.model_config import SCRATCH, parameter_count
from rlaif_jax.models.pretrained import foreign_config, policy_config
from rlaif_jax.runs.data import RunData
from rlaif_jax.runs.folder import Run

LARGE = 500_000_000  # parameters; nobody trains as many from random weights by a config of this library without meaning to


def problems_of(checks: Iterable[Callable[[], Any]]) -> list[str]:
    """The messages of the checks that raise a UserError, each once."""
    found: dict[str, None] = {}
    for check in checks:
        try:
            check()
        except UserError as error:
            found[str(error)] = None
    return list(found)


def check_settings(run: Run, stages: Sequence[Stage]) -> list[str]:
    """What these stages would stop at for a reason that is known before they begin."""
    cfg, data = run.cfg, RunData(dataclasses.replace(run, console=Console(quiet=True)))
    checks: list[Callable[[], Any]] = []
    checks += [lambda folder=folder, scalar=scalar: _check_folder(cfg, folder, scalar) for folder, scalar in _folders(cfg, stages)]
    if asks(cfg, stages):
        checks += [lambda: _check_feedback(run), lambda: load_prompts(cfg.feedback.family(data.language))]
    if cfg.judge is not None and asks(cfg, stages):
        checks += [lambda: read_rules(cfg.judge.principles, data.language)]
        checks += [lambda: read_rules(cfg.judge.strategies, data.language)] if cfg.judge.game else []
    if run.imports_functions:
        checks += [lambda n=name, f=function: _check_function(run, n, f) for name, function in _functions(cfg, stages)]
    told = problems_of([lambda: data.language])  # by the check of the data
    return [text for text in problems_of(checks) if text not in told]


def asks(cfg: RunConfig, stages: Iterable[Stage]) -> bool:
    """Whether any of these stages asks the feedback model."""
    names = {stage.name for stage in stages}
    judged = {name for name, arm in cfg.all_arms().items() if arm.judge} | ({EVALUATE.name} if cfg.judge is not None else set())
    return cfg.feedback is not None and bool(names & {CURATE.name, PRINCIPLES.name, FEEDBACK.name, *judged})


def check_start(cfg: RunConfig) -> None:
    """UserError for a large model that would start from random weights without the config's word."""
    size = parameter_count(cfg.model)
    if not cfg.model.init_from and size >= LARGE:
        raise UserError(
            f"model.init_from is empty: a model of {size / 1e9:.1f} B parameters would start from random weights. Set it to the "
            f"folder of the weights, or to {SCRATCH!r} if that is what you want"
        )


def folders_of(cfg: RunConfig) -> dict[str, tuple[str, bool]]:
    """The model folders that a config names: field -> (folder, whether it holds a sequence classifier)."""
    named = {"model.init_from": (cfg.model.start, False)}
    named |= {f"{n}.folder": (c.folder, True) for n, c in (("reward", cfg.reward), ("grader", cfg.grader)) if c is not None}
    if cfg.feedback is not None and cfg.feedback.backend == "folder":
        named["feedback.model"] = (cfg.feedback.model, False)
    return {field: found for field, found in named.items() if found[0]}


def _folders(cfg: RunConfig, stages: Sequence[Stage]) -> list[tuple[str, bool]]:
    used = asks(cfg, stages)
    return [found for field, found in folders_of(cfg).items() if used or field != "feedback.model"] if stages else []


def _check_folder(cfg: RunConfig, folder: str, scalar: bool) -> None:
    if not Path(folder).exists() and folder.count("/") == 1 and folder[0] not in "./~":
        raise UserError(f"{folder} is not a folder here; a model of the Hugging Face Hub: hf download {folder} --local-dir FOLDER")
    read_config(folder)
    if folder == cfg.model.start:
        policy_config(folder)
    else:
        foreign_config(folder, cfg.model, scalar)


def _check_feedback(run: Run) -> None:
    cfg = run.cfg.feedback
    if cfg.backend == "http":
        if not cfg.http.model:
            raise UserError("feedback.http.model is empty: name the model at the API")
        if cfg.http.key_variable and not os.environ.get(cfg.http.key_variable):
            raise UserError(
                f"the environment variable {cfg.http.key_variable} is not set; set it to the API key (for a server without keys: "
                "feedback.http.key_variable='')"
            )
    elif cfg.backend == "recorded":
        RecordedLLM(cfg.transcript, cfg.model)
    elif (callable(cfg.backend) or ":" in cfg.backend) and run.imports_functions:
        run.resolve(cfg.backend)


def _functions(cfg: RunConfig, stages: Iterable[Stage]) -> list[tuple[str, Any]]:
    found = []
    for stage in stages:
        if stage.kind == "rl":
            arm, loss = cfg.all_arms()[stage.name], cfg.rl_of(stage.name).policy.loss
            found += [(f"arms.{stage.name}.functions.{name}", f.function) for name, f in arm.functions.items()]
            found += [("rl.policy.loss", loss)] if callable(loss) or ":" in loss else []
    return found


def _check_function(run: Run, name: str, function: Any) -> None:
    try:
        run.resolve(function)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
