"""The whole job: killed and resumed, on one device and on eight, without recompilation."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from rich.console import Console

from rlaif_jax.config.overrides import overridden
from rlaif_jax.errors import UserError
from rlaif_jax.runs.folder import Run, open_run
from rlaif_jax.stages import pipeline
from rlaif_jax.trainers import loop
from rlaif_jax.trainers.metrics_log import read_metrics
from tests import tiny

QUIET = Console(quiet=True)


def _final_params(folder: Path) -> dict[str, bytes]:
    step = max(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    path = folder / "checkpoints" / str(step) / "params"
    tree = ocp.StandardCheckpointer().restore(path.absolute())
    return {jax.tree_util.keystr(k): np.asarray(v).tobytes() for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def _start(config: Path, out: Path) -> subprocess.Popen:
    env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "rlaif_jax.cli", "run", str(config), "--out", str(out)]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _kill_when(process: subprocess.Popen, metrics: Path, step: int) -> None:
    """kill -9 as soon as the stage has logged this step."""
    while process.poll() is None:
        if any(row["step"] >= step for row in read_metrics(metrics)):
            process.send_signal(signal.SIGKILL)
            process.wait()
            return
        time.sleep(0.02)
    raise AssertionError(f"ended before step {step} of {metrics}: {process.stderr.read().decode()[-2000:]}")


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(tmp_path):
    config = tmp_path / "config.py"
    config.write_text("from tests import tiny\n\n\ndef config():\n    return tiny.config(steps=12, checkpoint_every=4)\n")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _start(config, whole).wait() == 0
    for stage in ("sft", "reward", "rl"):
        _kill_when(_start(config, killed), killed / stage / "metrics.jsonl", 6)
        assert not (killed / stage / "done.json").exists()
    assert _start(config, killed).wait() == 0
    for stage in ("sft", "reward", "grader", "rl"):
        assert _final_params(whole / stage) == _final_params(killed / stage), stage
        rows = [[r["step"] for r in read_metrics(run / stage / "metrics.jsonl")] for run in (whole, killed)]
        assert rows[0] == rows[1]
    report = json.loads((killed / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["rows"] == json.loads((whole / "report" / "report.json").read_text(encoding="utf-8"))["rows"]


def _losses(folder: Path) -> np.ndarray:
    return np.array([r["loss"] for r in read_metrics(folder / "metrics.jsonl") if "loss" in r])


@pytest.mark.slow
def test_eight_devices_train_as_one_does(tmp_path, one_device, eight_devices):
    cfg = tiny.config(steps=20, checkpoint_every=20)
    runs = [Run(cfg, tmp_path / n, p, QUIET) for n, p in (("one", one_device), ("eight", eight_devices))]
    names = ("tokenizer", "sft", "reward", "rl")
    for x in runs:
        pipeline.run(x, names)
    for stage in ("sft", "reward", "rl"):
        one, eight = (_losses(x.folder(stage)) for x in runs)
        assert len(one) == 20
        np.testing.assert_allclose(one, eight, atol=1e-5, err_msg=stage)
    texts = [(x.folder("rl") / "samples.jsonl").read_text(encoding="utf-8") for x in runs]
    sampled = [[(r["step"], r["prompt"], r["response"]) for r in map(json.loads, t.split("\n")[:-1])] for t in texts]
    assert sampled[0] == sampled[1] and len(sampled[0]) == 160


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_step(tmp_path, one_device, monkeypatch):
    compiled, seen = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **__: compiled.append(name) if name.endswith("backend_compile_duration") else None
    )
    add = loop._Window.add
    monkeypatch.setattr(loop._Window, "add", lambda self, m: (seen.append(len(compiled)), add(self, m))[1])
    x = Run(tiny.config(steps=5, checkpoint_every=5), tmp_path / "run", one_device, QUIET)
    for stage in ("tokenizer", "sft", "reward", "rl"):
        seen.clear()
        pipeline.run(x, [stage])
        if stage != "tokenizer":
            assert seen[0] > 0, "the listener saw no compilation at all"
            assert seen[-1] == seen[0], f"{stage}: {seen}"


def test_a_finished_stage_is_skipped_and_another_config_refused(tmp_path, monkeypatch):
    cfg = tiny.config()
    x = open_run(tmp_path / "run", cfg, QUIET)
    pipeline.run(x, ["tokenizer"])
    monkeypatch.setattr(pipeline, "KINDS", {"tokenizer": lambda *_: pytest.fail("ran again")})
    pipeline.run(x, ["tokenizer"])
    with pytest.raises(UserError, match="seed"):
        open_run(tmp_path / "run", dataclasses.replace(cfg, seed=5), QUIET)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        open_run(tmp_path / "other", cfg, QUIET)


def test_a_stage_without_its_forerunner_says_which(tmp_path):
    x = open_run(tmp_path / "run", tiny.config(), QUIET)
    with pytest.raises(UserError, match="'sft' has not finished"):
        pipeline.run(x, ["tokenizer", "rl"])


def test_several_processes_refuse_a_batch_before_the_first_stage(tmp_path, eight_devices, monkeypatch):
    monkeypatch.setattr("rlaif_jax.stages.pipeline.jax.process_count", lambda: 2)
    cfg = overridden(tiny.config(), ["reward.train.batch_size=6"])
    x = Run(cfg, tmp_path, eight_devices, QUIET)
    monkeypatch.setattr(pipeline, "KINDS", {"train": lambda *_: pytest.fail("begins")})
    with pytest.raises(UserError, match="reward.train.batch_size is 6, and must be a multiple of the 4 row shards"):
        pipeline.run(x, ["sft", "reward"])
