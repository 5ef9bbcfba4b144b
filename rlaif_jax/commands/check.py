"""`rlaif check CONFIG`: data, models, functions, the judge with one real call, and memory, in seconds; trains nothing."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from jax.sharding import AbstractMesh
from rich.console import Console

from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.sections import FeedbackConfig
from rlaif_jax.config.stages import stages_of
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.llm import LLMRequest, Message
from rlaif_jax.feedback.openai_llm import OpenAILLM
from rlaif_jax.feedback.verdicts import BAD, GOOD
from rlaif_jax.models.hf_files import Checkpoint
from rlaif_jax.models.hf_weights import check, name_table
from rlaif_jax.models.model_config import parameter_count
from rlaif_jax.models.pretrained import ORBAX_FOLDER, foreign_config
from rlaif_jax.plan.estimate import planned_mesh, print_plan
from rlaif_jax.runs.changes import changed_fields, refuse_outdated
from rlaif_jax.runs.data_check import DataCheck, check_data
from rlaif_jax.runs.folder import Run, saved_config, stage_folder
from rlaif_jax.runs.preflight import asks, check_settings, check_start, folders_of, problems_of
from rlaif_jax.sharding import Placement

_SECONDS = 30.0  # the longest that the one call to the judge may take


def dry_run(cfg: RunConfig, out: Path, console: Console) -> None:
    """Prints stages, models, memory and data. UserError with every mistake that is known before the first stage; for a mesh that
    this machine does not have, mistakes in files are notes."""
    planned = problems_of([lambda: print_plan(cfg, console)])
    for text in problems_of([lambda: check_start(cfg)]):  # a plan needs no weights
        console.print(f"note: `rlaif run` refuses this: {text}", style="yellow", markup=False, soft_wrap=True)
    run = _not_made(cfg, out, console)
    problems = _checked(run)
    if isinstance(run.place.mesh, AbstractMesh):  # a plan for another machine, where the files are
        for text in problems:
            console.print(f"note: not on this machine, or a mistake: {text}", style="yellow", markup=False, soft_wrap=True)
        problems = []
    _refuse(list(dict.fromkeys([*problems, *planned])))


def check_run(cfg: RunConfig, out: Path, console: Console) -> None:
    """`dry_run`, and a look into every model folder and one real call to the judge. UserError with every mistake."""
    run = _not_made(cfg, out, console)
    problems = [*problems_of([lambda: check_start(cfg)]), *_checked(run)]
    for field, (folder, scalar) in folders_of(cfg).items():
        problems += problems_of([lambda f=field, d=folder, s=scalar: _look_into(run, f, Path(d), s)])
    if asks(cfg, stages_of(cfg).values()) and cfg.feedback.backend == "http":
        problems += problems_of([lambda: _call(cfg.feedback, _reads_logprobs(cfg), console)])
    problems += problems_of([lambda: print_plan(cfg, console)])
    _refuse(list(dict.fromkeys(problems)))
    console.print("no mistake found", style="green")


def _not_made(cfg: RunConfig, out: Path, console: Console) -> Run:
    """The run of a folder that need not exist and is not changed."""
    return Run(cfg, out, Placement.of(planned_mesh(cfg.mesh), cfg.mesh.rules), console, imports_functions=True)


def _checked(run: Run) -> list[str]:
    """Prints what the data hold, and gives what the run would stop at."""
    cfg, todo = run.cfg, [stage for stage in stages_of(run.cfg).values() if not run.is_done(stage.name)]
    problems = problems_of([lambda: _fits_folder(cfg, run.out)]) if (run.out / "config.json").exists() else []
    bundled = not cfg.data.root and not stage_folder(run.out, "tokenizer").joinpath("done.json").exists()
    found = DataCheck(facts=["data: the bundled corpus, which the first stage writes"]) if bundled else check_data(run, todo)
    for text in found.facts:
        run.console.print(text, markup=False, soft_wrap=True)
    for text in found.warnings:
        run.console.print(f"note: {text}", style="yellow", markup=False, soft_wrap=True)
    return [*problems, *found.problems, *check_settings(run, todo)]


def _fits_folder(cfg: RunConfig, out: Path) -> None:
    before = saved_config(out)
    refuse_outdated(out, before, changed_fields(before, cfg), lambda name: stage_folder(out, name))


def _refuse(problems: list[str]) -> None:
    if problems:
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        raise UserError(f"{count}:\n  " + "\n  ".join(problems))


def _look_into(run: Run, field: str, folder: Path, scalar: bool) -> None:
    """Prints what a model folder holds. Reads config, tokenizer and the headers of the weights, and no weights."""
    model, tokenizer = foreign_config(folder, run.cfg.model, scalar), Tokenizer.load(folder)
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(f"{field}: {folder}: the tokenizer has {tokenizer.vocab_size} tokens, but the model {model.vocab_size}")
    if not (folder / ORBAX_FOLDER).exists():
        check(Checkpoint(folder), name_table(model, scalar), model.tied_embeddings and not scalar)
    text = f"{field}: {parameter_count(model):,} parameters, {model.layers} layers, {tokenizer.vocab_size:,} tokens ({folder})"
    run.console.print(text, markup=False, soft_wrap=True)


def _reads_logprobs(cfg: RunConfig) -> bool:
    return cfg.judge is not None and cfg.judge.single_mode in ("soft", "checklist")


def _call(cfg: FeedbackConfig, logprobs: bool, console: Console) -> None:
    """One real request to the chat API, and prints the answer. UserError with the fields to change."""
    http = dataclasses.replace(cfg.http, attempts=1, timeout=min(cfg.http.timeout, _SECONDS))
    where = f"{http.base_url or 'the default address'}, model {http.model}"
    try:
        answer = _answer(OpenAILLM(http), logprobs)
    except UserError as error:
        fields = "feedback.http.base_url, .model and .key_variable"
        raise UserError(f"the judge at {where} does not answer: {error}; see {fields}") from error
    console.print(f"judge: {where}: {answer}", markup=False, soft_wrap=True)


def _answer(llm: OpenAILLM, logprobs: bool) -> str:
    request = LLMRequest((Message("user", f"Answer with one word: {GOOD}"),), max_tokens=16)
    if not logprobs:
        reply = llm.complete([request])[0]
        if reply.failure is not None:
            raise UserError(f"{reply.failure.kind}: {reply.failure.detail}")
        return f"answers {reply.text[:40]!r}"
    row = llm.choice_logprobs([request], (GOOD, BAD))[0]
    if 0 in llm.failures:
        raise UserError(str(llm.failures[0]))
    if not any(map(math.isfinite, row.tolist())):
        hint = "set judge.mode=k_vote or binary, or use a server that returns top_logprobs"
        raise UserError(f"no log-probability of {GOOD} or {BAD} came; {hint}")
    return f"gives log-probabilities of {GOOD} and {BAD}"
