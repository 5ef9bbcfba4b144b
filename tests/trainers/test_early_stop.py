"""Early stopping: after so many evaluations without a better score, also over a restart and on several processes."""

import io
import itertools
import os
import signal
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from rlaif_jax.algorithms.mean import mean_of
from rlaif_jax.commands.launch import Launch, supervise
from rlaif_jax.config import TrainConfig
from rlaif_jax.errors import Preempted, UserError
from rlaif_jax.trainers import loop
from rlaif_jax.trainers.checkpoint import Checkpoints
from rlaif_jax.trainers.metrics_log import read_metrics
from rlaif_jax.trainers.optimizer import OptimizerConfig, make_optimizer
from rlaif_jax.trainers.update import make_update
from tests.trainers.states import create_state
from tests.trainers.test_update import _Counting

NAN = float("nan")
RISES_TWICE = [1.0, 2.0, 2.0, 1.5, 9.0, 9.0, 9.0]


def fit(folder, place, qualities, patience, notice_at: int = 0, console=None):
    """A stage of 20 steps that evaluates every second one: (state at its end, evaluations made here)."""
    optimizer = make_optimizer(OptimizerConfig(1e-2), 10)
    state, shardings = create_state(lambda: {"w": jnp.ones((3, 3))}, {"w": (None, None)}, optimizer, place)
    update = make_update(lambda p, b: (mean_of(jnp.sin(p["w"] * jnp.mean(b["x"]))), {}), optimizer, shardings)
    train = TrainConfig(steps=20, log_every=1, checkpoint_every=2, patience=patience)
    stage = loop.Job("toy", folder, train, console or Console(quiet=True), score=lambda metrics: metrics["quality"])
    made = itertools.count()

    def step(state, batch, number):
        if number == notice_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(state, batch)

    def evaluate(state):
        next(made)
        return {"quality": float(qualities[int(state.step) // 2 - 1])}

    return loop.fit(stage, state, shardings, _Counting(), step, evaluate), next(made)


@pytest.mark.parametrize(
    ("scores", "since"),
    [([], 0), ([1.0], 0), ([1.0, 1.0], 1), ([1.0, 2.0, 1.0], 1), ([3.0, 1.0, 2.0, 3.0], 3), ([NAN, NAN], 2), ([NAN, 1.0], 0),
     ([1.0, NAN], 1), ([-5.0, -4.0], 0)],
)  # fmt: skip
def test_evaluations_since_the_best(scores, since):
    assert loop.evaluations_since_best(scores) == since


def test_it_stops_after_so_many_evaluations_without_a_better_one(tmp_path, one_device):
    text = io.StringIO()
    state, evaluated = fit(tmp_path, one_device, RISES_TWICE, patience=2, console=Console(file=text, width=200))
    assert (int(state.step), evaluated) == (8, 4), "best at step 4, no better at 6 and at 8"
    assert "toy: stopped early at step 8 of 20: no better in 2 evaluations" in text.getvalue()
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl") if "loss" in r] == list(range(1, 9))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.selected_step("last") == 8 and checkpoints.selected_step("best") == 6, "of equals the later one"
    checkpoints.close()


def test_more_patience_sees_the_later_rise(tmp_path, one_device):
    state, _ = fit(tmp_path, one_device, RISES_TWICE + [9.0] * 3, patience=3)
    assert int(state.step) == 16, "best at step 10"


def test_without_patience_it_runs_all_steps(tmp_path, one_device):
    state, _ = fit(tmp_path, one_device, [1.0] * 10, patience=0)
    assert int(state.step) == 20
    with pytest.raises(UserError, match="TrainConfig.patience is -1"):
        TrainConfig(patience=-1)


@pytest.mark.parametrize(("at", "left"), [(5, 2), (6, 1), (7, 1), (8, 0)])
def test_a_run_that_was_interrupted_stops_at_the_same_step_with_the_same_bytes(tmp_path, one_device, at, left):
    whole, _ = fit(tmp_path / "whole", one_device, RISES_TWICE, patience=2)
    with pytest.raises(Preempted):
        fit(tmp_path / "parts", one_device, RISES_TWICE, patience=2, notice_at=at)
    parts, evaluated = fit(tmp_path / "parts", one_device, RISES_TWICE, patience=2)
    assert (int(parts.step), evaluated) == (8, left)
    np.testing.assert_array_equal(whole.params["w"], parts.params["w"])


def test_processes_that_score_differently_stop_together(tmp_path):
    said = []
    command = [sys.executable, "-m", "tests.trainers.early_stop_worker", str(tmp_path)]
    assert supervise(command, Launch(local=2, devices=1, restarts=0), said.append) == 0, said
    assert [(tmp_path / f"{i}.txt").read_text(encoding="utf-8") for i in (0, 1)] == ["8 4"] * 2
