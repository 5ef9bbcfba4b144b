"""The training loop that every stage shares: resume, step, log, evaluate, save."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlaif_jax.errors import Interrupted, Preempted, UserError
from rlaif_jax.models.pretrained import all_finite
from rlaif_jax.sharding import broadcast
from rlaif_jax.sharding.memory import on_device
from rlaif_jax.sharding.placement import abstract_like
from rlaif_jax.trainers.checkpoint import Checkpoints
from rlaif_jax.trainers.config import TrainConfig
from rlaif_jax.trainers.health import Health
from rlaif_jax.trainers.metrics_log import MetricsWriter, read_metrics
from rlaif_jax.trainers.preemption import preemption_notice
from rlaif_jax.trainers.update import TrainState


class Batches(Protocol):
    """An endless iterator of batches whose position can be saved and restored exactly."""

    def __next__(self) -> Any: ...
    def get_state(self) -> dict: ...
    def set_state(self, state: dict) -> None: ...


_MOST_IDLE = 20  # steps in a row without effect, after which a stage fails (in a short stage, half of its steps)
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

    def warn(self, text: str) -> None:
        """Prints a warning under the stage's name."""
        self.console.print(f"{self.name}: {text}", style="yellow", markup=False)


def fit(
    job: Job, state: TrainState, shardings: TrainState, batches: Batches, step_fn: StepFn,
    evaluate: EvaluateFn | None = None,
) -> TrainState:  # fmt: skip
    """Trains from the newest checkpoint (or from `state`) up to `train.steps`, and saves the last step.

    Stops early after `train.patience` evaluations in a row without a better score. On SIGTERM or Ctrl-C it finishes the current
    step, saves and raises Preempted or Interrupted. With several processes, every process makes the same call.

    A run that is killed and started again ends with the same parameters, bit for bit: the checkpoint holds parameters,
    optimizer state, step, data position and all scores, and every random key comes from (seed, step, row).

    Prints the warnings of `trainers.health`. UserError if no update takes effect any more, or if weights are not finite.
    """
    with Checkpoints(job.folder / "checkpoints", job.train.max_to_keep) as checkpoints:
        return _fit(job, checkpoints, state, shardings, batches, step_fn, evaluate)


def _fit(job, checkpoints, state, shardings, batches, step_fn, evaluate) -> TrainState:
    state, start, kept = _resume(job, checkpoints, state, shardings, batches)
    health = Health(job.warn, *read_metrics(job.folder / "metrics.jsonl")[:1])
    writer = MetricsWriter(job.folder, start, job.wandb_project, job.name)
    scores, effect = kept["scores"], _Effect(job, state, start, kept)
    window, saved, step, stopped = _Window(), start, start, None
    with _progress(job, start) as advance, preemption_notice(job.warn) as told:
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
                health.look(step, means)
                job.watch(step, means)
                effect.look(state, step)
            score, results = -math.inf, {}  # a checkpoint without an evaluation is never the best
            if _due(step, job.train.eval_every or job.train.checkpoint_every, job.train):
                score, results = _evaluated(job, evaluate, state, writer, step)
                scores += [score] if results else []
            if _due(step, job.train.checkpoint_every, job.train):
                _save(job, checkpoints, state, batches, step, score, kept | {"metrics": results})
                saved = step
            if stopped := told():
                break
        if saved != step:
            _save(job, checkpoints, state, batches, step, -math.inf, kept | {"metrics": {}})
        checkpoints.close()
        writer.close()
        if stopped:
            kind = Interrupted if stopped == signal.SIGINT else Preempted
            raise kind(f"{job.name} got a signal to stop and is saved at step {step} of {job.train.steps}")
    return state


def _due(step: int, every: int, train: TrainConfig) -> bool:
    """Whether this step is a multiple of `every`, or the last one."""
    return step % every == 0 or step == train.steps


def _evaluated(
    job: Job, evaluate: EvaluateFn | None, state: TrainState, writer: MetricsWriter, step: int
) -> tuple[float, dict[str, float]]:
    """Evaluates the state and logs its held-out metrics; returns its score (the same on every process) and the metrics."""
    results = evaluate(state) if evaluate else {}
    found = job.score(results)
    # One score for all processes, so that they keep the same best checkpoint and stop at the same step.
    score = broadcast(-math.inf if math.isnan(found) else found, "score")
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


def _resume(job: Job, checkpoints: Checkpoints, state: TrainState, shardings: TrainState, batches: Batches):
    """State, step, and scores and idle steps, of the newest intact checkpoint; without one, those of the start."""
    latest = checkpoints.newest_intact(job.warn)
    if latest is None:
        return state, 0, {"scores": [], "idle": 0}
    wanted = _rest(shardings)
    here = on_device(wanted)  # offloaded arrays are restored to the devices first: not every reader can write host memory
    params, rest, meta = checkpoints.restore(
        latest, abstract_like(state.params, shardings.params), abstract_like(_rest(state), here)
    )
    if jax.tree.leaves(here) != jax.tree.leaves(wanted):
        rest = jax.device_put(rest, wanted)
    batches.set_state(meta["data"])
    kept = {"scores": meta.get("scores", []), "idle": meta.get("idle", 0)}  # an older checkpoint may lack them
    return state.replace(params=params, **rest), latest, kept


def _rest(state: TrainState) -> dict[str, Any]:
    """The state without parameters and frozen weights. Parameters are saved apart: later stages restore only them."""
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name not in ("params", "frozen")}
    return {name: value for name, value in fields.items() if value is not None}


def _save(job: Job, checkpoints: Checkpoints, state: TrainState, batches: Batches, step: int, score: float, kept: dict) -> None:
    critic = getattr(state, "critic", None)
    if not all_finite((state.params, critic and critic.params)):
        raise UserError(
            f"{job.name}: there are weights that are not finite after step {step}, so it is not saved. Try a smaller "
            "train.optimizer.learning_rate"
        )
    meta = {**kept, "data": batches.get_state(), "step": step, "scores": list(kept["scores"])}  # written later: no list that grows
    checkpoints.save(step, state.params, _rest(state), meta, score)


class _Effect:
    """Counts the last steps of which no update took effect (each was skipped, see `TrainState`), in kept["idle"]."""

    def __init__(self, job: Job, state: TrainState, step: int, kept: dict[str, Any]):
        self._job, self._kept, self._step = job, kept, step
        self._updates, self._skipped = jax.device_get((state.step, state.skipped))
        self._most = min(_MOST_IDLE, -(-job.train.steps // 2))

    def look(self, state: TrainState, step: int) -> None:
        """Counts the steps since the last call. UserError if there are too many in a row without effect."""
        updates, skipped = jax.device_get((state.step, state.skipped))
        none = updates > self._updates and updates - self._updates == skipped - self._skipped
        self._kept["idle"] = self._kept["idle"] + step - self._step if none else 0
        self._step, self._updates, self._skipped = step, updates, skipped
        if self._kept["idle"] >= self._most:
            raise UserError(
                f"{self._job.name}: the last {self._kept['idle']} steps, up to step {step}, trained nothing: each was skipped, "
                "since its loss or gradient was not finite, or its batch had no valid row. Try a smaller "
                "train.optimizer.learning_rate; if no step ever trained, check the weights that the stage starts from, and the "
                f"rewards. {self._job.folder / 'metrics.jsonl'} has the losses"
            )


class _Window:
    """Metrics since the last log line; arrays are fetched only when the line is written."""

    def __init__(self):
        self._rows: list[dict[str, Any]] = []
        self._since = time.perf_counter()

    def add(self, metrics: dict[str, Any]) -> None:
        self._rows.append(metrics)

    def means(self) -> dict[str, float]:
        rows = jax.device_get(self._rows)
        names = dict.fromkeys(name for row in rows for name in row)  # a part of the reward that applied to no row is not there
        means = {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
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
