"""Two processes with four virtual devices each train as one process does; killed, preempted, and on other machines."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from rlaif_jax.algorithms.kl import KlConfig
from rlaif_jax.config.values import to_dict
from rlaif_jax.errors import Preempted
from rlaif_jax.runs.folder import Run, open_run
from rlaif_jax.stages import pipeline
from rlaif_jax.trainers import loop
from rlaif_jax.trainers.config import CriticConfig, ShapingConfig
from rlaif_jax.trainers.metrics_log import read_metrics
from rlaif_jax.trainers.optimizer import OptimizerConfig
from tests import tiny
from tests.processes import MESH, ended, launch
from tests.trainers.states import restore_all

pytestmark = pytest.mark.slow
QUIET, STEPS = Console(quiet=True), 12


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> tuple[Path, Path]:
    """A config file, and a run folder with nothing but a tokenizer in it, to be copied."""
    folder = tmp_path_factory.mktemp("multihost")
    config = folder / "config.py"
    text = f"from tests import tiny\n\n\ndef config():\n    return tiny.config(steps={STEPS}, checkpoint_every=4)\n"
    config.write_text(text)
    x = open_run(folder / "start", _config(), QUIET)
    pipeline.run(x, ["tokenizer"])
    return config, x.out


def _config():
    return tiny.config(steps=STEPS, checkpoint_every=4)


def _launch(start, out: Path, stage: str, **machine) -> subprocess.Popen:
    if not out.exists():
        shutil.copytree(start[1], out)
    return launch(start[0], out, stage, **machine)


def _losses(folder: Path, key: str = "loss") -> np.ndarray:
    return np.array([r[key] for r in read_metrics(folder / "metrics.jsonl") if "loss" in r])


def _held_out(folder: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k.startswith("eval/")} for r in read_metrics(folder / "metrics.jsonl")
            if "loss" not in r]  # fmt: skip


def _params(folder: Path) -> dict[str, np.ndarray]:
    step, saved = restore_all(folder / "checkpoints")
    assert step == STEPS
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(saved["params"])}


def _samples(folder: Path) -> list[tuple]:
    rows = map(json.loads, (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines())
    return [(r["step"], r["prompt"], r["response"]) for r in rows]


@pytest.fixture(scope="module")
def two(start, tmp_path_factory) -> Path:
    """SFT, reward model and GRPO on two processes."""
    out = tmp_path_factory.mktemp("two") / "run"
    for stage in ("sft", "reward", "rl"):
        ended(_launch(start, out, stage))
    return out


def test_two_processes_train_as_eight_devices_and_as_one(start, two, tmp_path, one_device, eight_devices):
    for name, place in (("one", one_device), ("eight", eight_devices)):
        shutil.copytree(start[1], tmp_path / name)
        x = Run(_config(), tmp_path / name, place, QUIET)
        pipeline.run(x, ("sft", "reward", "rl"))
        for stage in ("sft", "reward", "rl"):
            losses = _losses(two / stage)
            assert len(losses) == STEPS, "process 0 alone writes, each step once"
            np.testing.assert_allclose(losses, _losses(x.folder(stage)), atol=1e-5, err_msg=f"{stage}, {name}")
            for a, b in zip(_held_out(two / stage), _held_out(x.folder(stage)), strict=True):
                assert a == pytest.approx(b, abs=1e-4), "the held-out pass reads every row once"
        assert _samples(two / "rl") == _samples(x.folder("rl"))


def ppo_config():
    """A critic from the reward model, KL in the reward with a coefficient that adapts, running statistics of rewards."""
    cfg = tiny.config(steps=6)
    rl = dataclasses.replace(
        cfg.rl, critic=CriticConfig(OptimizerConfig(1e-3), warmup=1),
        kl=KlConfig(0.05, "reward", "k1", target=0.1, ref_sync_steps=3), group_size=2, num_minibatches=2,
        num_epochs=2, shaping=ShapingConfig(normalise=True, clip=5.0),
    )  # fmt: skip
    return dataclasses.replace(cfg, rl=rl)


def test_ppo_on_two_processes_trains_as_eight_devices_and_as_one(two, tmp_path, one_device, eight_devices):
    config = tmp_path / "config.py"
    config.write_text("from tests.stages.test_multihost import ppo_config as config\n")
    for name in ("two", "one", "eight"):  # they start with the same models
        shutil.copytree(two, tmp_path / name, ignore=shutil.ignore_patterns("rl", "config.json"))
        (tmp_path / name / "config.json").write_text(json.dumps(to_dict(ppo_config())), encoding="utf-8")
    ended(launch(config, tmp_path / "two", "rl"))
    found = tmp_path / "two" / "rl"
    for name, place in (("one", one_device), ("eight", eight_devices)):
        x = Run(ppo_config(), tmp_path / name, place, QUIET)
        pipeline.run(x, ["rl"])
        assert _samples(found) == _samples(x.folder("rl"))
        for key in ("loss", "critic/loss", "reward", "kl_sequence", "kl_coefficient"):
            curve = _losses(found, key)
            assert len(curve) == 6
            np.testing.assert_allclose(curve, _losses(x.folder("rl"), key), atol=1e-5, err_msg=f"{key}, {name}")
    assert np.ptp(_losses(found, "kl_coefficient")) > 0 and np.all(_losses(found, "critic/loss") > 0)


@pytest.mark.parametrize(("victim", "number"), [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGTERM)])
def test_a_run_that_loses_a_process_ends_with_the_same_bytes(start, two, tmp_path, victim, number):
    process = _launch(start, tmp_path / "run", "sft")
    metrics = tmp_path / "run" / "sft" / "metrics.jsonl"
    while not any(row["step"] >= 6 for row in read_metrics(metrics)):
        assert process.poll() is None, process.stderr.read()[-3000:]
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[victim]), number)
    said = ended(process)
    assert ("has saved" if number == signal.SIGTERM else "died") in said and "restart 1 of 4" in said
    expected, found = _params(two / "sft"), _params(tmp_path / "run" / "sft")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert value.tobytes() == found[name].tobytes(), name
    assert [r["step"] for r in read_metrics(metrics) if "loss" in r] == list(range(1, STEPS + 1))


def test_the_supervisor_told_to_stop_saves_and_says_so(start, two, tmp_path):
    process = _launch(start, tmp_path / "run", "sft")
    metrics = tmp_path / "run" / "sft" / "metrics.jsonl"
    while not any(row["step"] >= 3 for row in read_metrics(metrics)):
        assert process.poll() is None, process.stderr.read()[-3000:]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = ended(process, 75)
    assert "saved at step" in said and not (tmp_path / "run" / "sft" / "done.json").exists()
    ended(_launch(start, tmp_path / "run", "sft"))
    np.testing.assert_array_equal(_losses(tmp_path / "run" / "sft"), _losses(two / "sft"))


@pytest.mark.parametrize(
    ("processes", "devices", "mesh"),
    [(1, 4, MESH), (2, 2, MESH), (4, 1, ("--set", "mesh.fsdp=4"))],
    ids=["one process, 4 devices", "2 processes, 4 devices", "4 processes, another mesh"],
)
def test_a_checkpoint_of_eight_devices_goes_on_elsewhere(
    start, two, tmp_path, monkeypatch, eight_devices, processes, devices, mesh
):
    shutil.copytree(start[1], tmp_path / "run")
    x = Run(_config(), tmp_path / "run", eight_devices, QUIET)

    def stop_at_eight(self, rows, add=loop._Window.add):
        add(self, rows)
        if len(seen.append(0) or seen) == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    seen: list[int] = []
    monkeypatch.setattr(loop._Window, "add", stop_at_eight)
    with pytest.raises(Preempted, match="step 8"):
        pipeline.run(x, ["sft"])
    ended(_launch(start, tmp_path / "run", "sft", processes=processes, devices=devices, mesh=mesh))
    losses = _losses(tmp_path / "run" / "sft")
    np.testing.assert_allclose(losses, _losses(two / "sft"), atol=1e-5)
    assert len(losses) == STEPS
    for name, value in _params(two / "sft").items():
        np.testing.assert_allclose(_params(tmp_path / "run" / "sft")[name], value, atol=1e-4, err_msg=name)
