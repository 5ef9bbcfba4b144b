"""SIGTERM while a loop runs: it saves after the step at hand and leaves; the next start ends with the same bytes."""

import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from rlaif_jax.algorithms.mean import mean_of
from rlaif_jax.cli import main
from rlaif_jax.config import TrainConfig
from rlaif_jax.errors import Preempted
from rlaif_jax.trainers import loop
from rlaif_jax.trainers.checkpoint import Checkpoints
from rlaif_jax.trainers.optimizer import OptimizerConfig, make_optimizer
from rlaif_jax.trainers.update import make_update
from tests.trainers.states import create_state
from tests.trainers.test_update import _Counting


def _fit(folder, place, notice_at: int = 0, steps: int = 10):
    optimizer = make_optimizer(OptimizerConfig(1e-2), 10)
    state, shardings = create_state(lambda: {"w": jnp.ones((3, 3))}, {"w": (None, None)}, optimizer, place)
    update = make_update(lambda p, b: (mean_of(jnp.sin(p["w"] * b["x"])), {}), optimizer, shardings)
    stage = loop.Job("toy", folder, TrainConfig(steps=steps, log_every=1, checkpoint_every=3), Console(quiet=True),
                       score=lambda metrics: metrics["quality"])  # fmt: skip

    def step(state, batch, number):
        if number == notice_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(state, batch)

    return loop.fit(stage, state, shardings, _Counting(), step, lambda state: {"quality": 1.0})


@pytest.mark.parametrize("at", [5, 6, 10], ids=["between checkpoints", "at a checkpoint", "at the end"])
def test_the_notice_is_saved_and_resumed(tmp_path, one_device, at):
    handler = signal.getsignal(signal.SIGTERM)
    whole = _fit(tmp_path / "whole", one_device)
    with pytest.raises(Preempted, match=f"saved at step {at} of 10"):
        _fit(tmp_path / "parts", one_device, notice_at=at)
    assert signal.getsignal(signal.SIGTERM) is handler
    checkpoints = Checkpoints(tmp_path / "parts" / "checkpoints")
    assert checkpoints.latest_step() == at
    assert checkpoints.selected_step("best") == {5: 3, 6: 6, 10: 10}[at], "what was not evaluated is never the best"
    checkpoints.close()
    parts = _fit(tmp_path / "parts", one_device)
    np.testing.assert_array_equal(whole.params["w"], parts.params["w"])


def test_the_command_ends_with_the_code_for_a_restart(monkeypatch, capsys):
    def stopped(*_):
        raise Preempted("sft got a signal to stop")

    monkeypatch.setattr("rlaif_jax.cli._config", stopped)
    assert main(["run", "x.py"]) == 75
    assert "start the same command again to resume" in capsys.readouterr().err
