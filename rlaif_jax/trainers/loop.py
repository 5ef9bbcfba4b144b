"""The training loop that every stage shares: resume, step, log, evaluate, save."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlaif_jax.errors import Interrupted, Preempted
from rlaif_jax.sharding import broadcast
from rlaif_jax.sharding.memory import on_device
from rlaif_jax.sharding.placement import abstract_like
from rlaif_jax.trainers.checkpoint import Checkpoints
from rlaif_jax.trainers.config import TrainConfig
from rlaif_jax.trainers.metrics_log import MetricsWriter
from rlaif_jax.trainers.preemption import preemption_notice
from rlaif_jax.trainers.update import TrainState


class Batches(Protocol):
    """An endless iterator of batches whose position can be saved and restored exactly."""

    def __next__(self) -> Any: ...
    def get_state(self) -> dict: ...
    def set_state(self, state: dict) -> None: ...


StepFn = Callable[[TrainState, Any, int], tuple[TrainState, dict[str, Any]]]
EvaluateFn = Callable[[TrainState], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Job:
    """One training stage: its name, folder and config.

    `score` turns evaluation metrics into a checkpoint's score (higher is better). `watch(step, means)` gets every log line.
    """

    name: str
    folder: Path
    train: TrainConfig
    console: Console
    score: Callable[[dict[str, float]], float] = lambda metrics: 0.0
    wandb_project: str = ""
    watch: Callable[[int, dict[str, float]], None] = lambda step, means: None


def fit(
    job: Job, state: TrainState, shardings: TrainState, batches: Batches, step_fn: StepFn,
    evaluate: EvaluateFn | None = None,
) -> TrainState:  # fmt: skip
    """Trains from the newest checkpoint (or from `state`) up to `train.steps`, and saves the last step.

    Stops early after `train.patience` evaluations in a row without a better score. On SIGTERM or Ctrl-C it finishes the current
    step, saves and raises Preempted or Interrupted. With several processes, every process makes the same call.

    A run that is killed and started again ends with the same parameters, bit for bit: the checkpoint holds parameters,
    optimizer state, step, data position and all scores, and every random key comes from (seed, step, row).
    """
    checkpoints = Checkpoints(job.folder / "checkpoints", job.train.max_to_keep)
    state, start, scores = _resume(checkpoints, state, shardings, batches)
    writer = MetricsWriter(job.folder, start, job.wandb_project, job.name)
    window, saved, step, stopped = _Window(), start, start, None
    with _progress(job, start) as advance, preemption_notice(partial(_say, job)) as told:
        for step in range(start + 1, job.train.steps + 1):
            if 0 < job.train.patience <= evaluations_since_best(scores):
                step -= 1
                _tell_early_stop(job, step)
                break
            state, metrics = step_fn(state, next(batches), step)
            window.add(metrics)
            if _due(step, job.train.log_every, job.train):
                means = window.means()
                writer.write(step, means)
                advance(step, means)
                job.watch(step, means)
            score, results = -math.inf, {}  # a checkpoint without an evaluation is never the best
            if _due(step, job.train.eval_every or job.train.checkpoint_every, job.train):
                score, results = _evaluated(job, evaluate, state, writer, step)
                scores += [score] if results else []
            if _due(step, job.train.checkpoint_every, job.train):
                _save(checkpoints, state, batches, step, score, results, scores)
                saved = step
            if stopped := told():
                break
        if saved != step:
            _save(checkpoints, state, batches, step, -math.inf, {}, scores)
        checkpoints.close()
        writer.close()
        if stopped:
            kind = Interrupted if stopped == signal.SIGINT else Preempted
            raise kind(f"{job.name} got a signal to stop and is saved at step {step} of {job.train.steps}")
    return state


def _say(job: Job, text: str) -> None:
    job.console.print(f"{job.name}: {text}", style="yellow", markup=False)


def _due(step: int, every: int, train: TrainConfig) -> bool:
    """Whether this step is a multiple of `every`, or the last one."""
    return step % every == 0 or step == train.steps


def _evaluated(
    job: Job, evaluate: EvaluateFn | None, state: TrainState, writer: MetricsWriter, step: int
) -> tuple[float, dict[str, float]]:
    """Evaluates the state and logs its held-out metrics; returns its score (the same on every process) and the metrics."""
    results = evaluate(state) if evaluate else {}
    score = broadcast(job.score(results), "score")  # so that all processes keep the same best checkpoint and stop at the same step
    if results:
        writer.write(step, {f"eval/{k}": v for k, v in results.items()})
    return score, results


def evaluations_since_best(scores: Sequence[float]) -> int:
    """The number of evaluations since the best score; a NaN is never the best."""
    best, since = -math.inf, 0
    for score in scores:
        best, since = (score, 0) if score > best else (best, since + 1)
    return since


def _tell_early_stop(job: Job, step: int) -> None:
    job.console.print(
        f"{job.name}: stopped early at step {step} of {job.train.steps}: no better in {job.train.patience} evaluations",
        highlight=False,
    )


def _resume(checkpoints: Checkpoints, state: TrainState, shardings: TrainState, batches: Batches):
    """State, step and scores of the newest checkpoint; without one, `state`, 0 and []."""
    latest = checkpoints.latest_step()
    if latest is None:
        return state, 0, []
    wanted = _rest(shardings)
    here = on_device(wanted)  # offloaded arrays are restored to the devices first: not every reader can write host memory
    params, rest, meta = checkpoints.restore(
        latest, abstract_like(state.params, shardings.params), abstract_like(_rest(state), here)
    )
    if jax.tree.leaves(here) != jax.tree.leaves(wanted):
        rest = jax.device_put(rest, wanted)
    batches.set_state(meta["data"])
    scores = meta.get("scores", [])  # checkpoints older than early stopping have none
    return state.replace(params=params, **rest), latest, scores


def _rest(state: TrainState) -> dict[str, Any]:
    """The state without parameters and frozen weights. Parameters are saved apart: later stages restore only them."""
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name not in ("params", "frozen")}
    return {name: value for name, value in fields.items() if value is not None}


def _save(checkpoints, state, batches, step, score, results, scores) -> None:
    meta = {"data": batches.get_state(), "step": step, "metrics": results, "scores": scores}
    checkpoints.save(step, state.params, _rest(state), meta, score)


class _Window:
    """Metrics since the last log line; arrays are fetched only when the line is written."""

    def __init__(self):
        self._rows: list[dict[str, Any]] = []
        self._since = time.perf_counter()

    def add(self, metrics: dict[str, Any]) -> None:
        self._rows.append(metrics)

    def means(self) -> dict[str, float]:
        rows = jax.device_get(self._rows)
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        elapsed, self._since = time.perf_counter() - self._since, time.perf_counter()
        if "tokens" in means:
            means["tokens_per_second"] = means["tokens"] * len(rows) / elapsed
        self._rows = []
        return means | {"seconds_per_step": elapsed / len(rows)}


@contextlib.contextmanager
def _progress(job: Job, start: int):
    """On a terminal, a progress bar with throughput and time left; in a log file, a line every 15 s at most.

    The time left is reckoned from the first report on, since the first step waits for the compiler.
    """
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    total = job.train.steps
    last_line, first = [time.perf_counter()], [(0.0, start)]
    if start:
        job.console.print(f"{job.name}: resumes at step {start} of {total}", markup=False)
    with Progress(*columns, console=job.console, disable=not job.console.is_terminal) as bar:
        task = bar.add_task(job.name, total=total, completed=start, note="compiling")

        def advance(step: int, means: dict[str, float]) -> None:
            shown = [f"{k} {means[k]:.4g}" for k in ("loss", "accuracy", "reward", "kl") if k in means]
            if "tokens_per_second" in means:
                shown.append(f"{means['tokens_per_second']:,.0f} tok/s")
            note = "  ".join(shown)
            bar.update(task, completed=step, note=note)
            now = time.perf_counter()
            if not job.console.is_terminal and (now - last_line[0] > 15 or step == total):
                since, done = first[0]
                left = f"  left {(now - since) / (step - done) * (total - step):.0f} s" if done > start else ""
                job.console.print(f"{job.name}: step {step}/{total}  {note}{left}", highlight=False, markup=False)
                last_line[0] = now
            if first[0][1] == start:
                first[0] = (now, step)

        yield advance
