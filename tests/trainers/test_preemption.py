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
from rlaif_jax.errors import Interrupted, Preempted
from rlaif_jax.trainers import loop
from rlaif_jax.trainers.checkpoint import Checkpoints
from rlaif_jax.trainers.optimizer import OptimizerConfig, make_optimizer
from rlaif_jax.trainers.preemption import preemption_notice
from rlaif_jax.trainers.update import make_update
from tests.trainers.states import create_state
from tests.trainers.test_update import _Counting


def _fit(folder, place, notice_at: int = 0, steps: int = 10, number: int = signal.SIGTERM):
    optimizer = make_optimizer(OptimizerConfig(1e-2), 10)
    state, shardings = create_state(lambda: {"w": jnp.ones((3, 3))}, {"w": (None, None)}, optimizer, place)
    update = make_update(lambda p, b: (mean_of(jnp.sin(p["w"] * b["x"])), {}), optimizer, shardings)
    stage = loop.Job("toy", folder, TrainConfig(steps=steps, log_every=1, checkpoint_every=3), Console(quiet=True),
                       score=lambda metrics: metrics["quality"])  # fmt: skip

    def step(state, batch, at):
        if at == notice_at:
            os.kill(os.getpid(), number)
        return update(state, batch)

    return loop.fit(stage, state, shardings, _Counting(), step, lambda state: {"quality": 1.0})


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Preempted), (signal.SIGINT, Interrupted)], ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize("at", [5, 6, 10], ids=["between checkpoints", "at a checkpoint", "at the end"])
def test_the_notice_is_saved_and_resumed(tmp_path, one_device, at, number, kind):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    whole = _fit(tmp_path / "whole", one_device)
    with pytest.raises(kind, match=f"saved at step {at} of 10"):
        _fit(tmp_path / "parts", one_device, notice_at=at, number=number)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    checkpoints = Checkpoints(tmp_path / "parts" / "checkpoints")
    assert checkpoints.latest_step() == at
    assert checkpoints.selected_step("best") == {5: 3, 6: 6, 10: 10}[at], "what was not evaluated is never the best"
    checkpoints.close()
    parts = _fit(tmp_path / "parts", one_device)
    np.testing.assert_array_equal(whole.params["w"], parts.params["w"])


def test_a_second_ctrl_c_stops_at_once(capsys):
    said = []
    with pytest.raises(KeyboardInterrupt), preemption_notice(said.append) as told:
        os.kill(os.getpid(), signal.SIGINT)
        assert told() == signal.SIGINT and "stopping after this step" in said[0]
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("a second Ctrl-C must not wait")


@pytest.mark.parametrize(("kind", "code"), [(Preempted, 75), (Interrupted, 130)])
def test_the_command_ends_with_the_code_for_a_restart(monkeypatch, capsys, kind, code):
    def stopped(*_):
        raise kind("sft got a signal to stop")

    monkeypatch.setattr("rlaif_jax.cli._config", stopped)
    assert main(["run", "x.py"]) == code
    assert "start the same command again to resume" in capsys.readouterr().err
