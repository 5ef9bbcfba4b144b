"""`kill -9` at random moments of every stage of a run with both arms: it ends with the same bytes, and nothing is paid twice.

RLAIF_TEST_KILLS says how many (default 12): at least 60 show it for every kind of stage. RLAIF_TEST_SEED draws other moments.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rlaif_jax.trainers.metrics_log import read_metrics
from tests.feedback.fake_api import FakeApi

CONFIG = '''import dataclasses

from rlaif_jax.config import FeedbackConfig, HttpConfig, JudgeConfig
from rlaif_jax.feedback.curate import CurateConfig
from rlaif_jax.feedback.principle_game import GameConfig
from tests import tiny


def config():
    return dataclasses.replace(
        tiny.config(steps=12, checkpoint_every=2),
        feedback=FeedbackConfig(backend="http", http=HttpConfig("m", "{url}", "", concurrency=4, timeout=20.0)),
        curate=CurateConfig(prompts=24, source="llm", examples=2, chunk=4),
        judge=JudgeConfig(principles="principles_general", game=GameConfig(rounds=2, games=2, reflections=2)),
    )
'''
STAGES = ("tokenizer", "sft", "curate", "reward", "grader", "principles", "rl", "rl_judge", "evaluate", "report")
TRAINED = ("sft", "reward", "grader", "rl", "rl_judge")
FILES = (
    "curate/items.jsonl", "principles/rounds.jsonl", "principles/principles.txt", "principles/principles/versions.json",
    "evaluate/graders.json", *(f"evaluate/samples_{name}.json" for name in ("base", "sft", "rl", "rl_judge")),
)  # fmt: skip


def _arrays(folder: Path) -> dict[str, bytes]:
    """Parameters and all other state of the newest checkpoint of a stage."""
    newest = max((p for p in (folder / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    trees = [ocp.StandardCheckpointer().restore((newest / part).absolute()) for part in ("params", "rest")]
    return {jax.tree_util.keystr(k): np.asarray(v).tobytes() for k, v in jax.tree_util.tree_leaves_with_path(trees)}


def _start(config: Path, out: Path) -> subprocess.Popen:
    env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "rlaif_jax.cli", "run", str(config), "--out", str(out)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _killed_in(process: subprocess.Popen, stage: str, after: float) -> bool:
    """kill -9 so many seconds after the stage began; whether it still ran."""
    before = STAGES[: STAGES.index(stage)]
    waits = before[-1] if before else None
    while waits is not None and (line := process.stdout.readline()):
        if line.startswith(f"{waits}: done"):
            break
    time.sleep(after)
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


def _finish(config: Path, out: Path) -> None:
    process = _start(config, out)
    said = process.communicate(timeout=900)[0]
    assert process.returncode == 0, said[-2000:]


def _compare(whole: Path, killed: Path) -> None:
    for stage in TRAINED:
        assert _arrays(whole / stage) == _arrays(killed / stage), stage
        rows = [[r["step"] for r in read_metrics(run / stage / "metrics.jsonl")] for run in (whole, killed)]
        assert rows[0] == rows[1], stage
    for name in FILES:
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    reports = [json.loads((run / "report" / "report.json").read_text(encoding="utf-8"))["rows"] for run in (whole, killed)]
    assert reports[0] == reports[1]
    left = [p for p in killed.rglob("*") if "orbax-checkpoint-tmp" in p.name]
    assert not left, left


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_run_with_both_arms_that_is_killed_anywhere_ends_with_the_same_bytes(tmp_path):
    api, rng = FakeApi(delay=0.03), random.Random(int(os.environ.get("RLAIF_TEST_SEED", "0")))
    most, kills, runs = int(os.environ.get("RLAIF_TEST_KILLS", "12")), dict.fromkeys(STAGES, 0), 0
    config, whole = tmp_path / "config.py", tmp_path / "whole"
    config.write_text(CONFIG.replace("{url}", api.url), encoding="utf-8")
    _finish(config, whole)
    seconds = {name: json.loads((whole / name / "done.json").read_text(encoding="utf-8"))["seconds"] for name in STAGES}
    asked, again = set(api.billed), 0
    while sum(kills.values()) < most:
        out, runs = tmp_path / f"killed{runs}", runs + 1
        api.billed.clear()
        api.bodies.clear()
        for stage in STAGES:
            for _ in range(2):
                if sum(kills.values()) < most and not (out / stage / "done.json").exists():
                    startup = 6.0 if stage == STAGES[0] else 0.0
                    if _killed_in(_start(config, out), stage, rng.uniform(0, startup + 0.7 * seconds[stage])):
                        kills[next((n for n in STAGES if not (out / n / "done.json").exists()), STAGES[-1])] += 1
        _finish(config, out)
        _compare(whole, out)
        assert set(api.billed) == asked, "no request is lost, and none is new"
        again += sum(times - 1 for *_, times in api.billed.values())
        stored = len(set(api.billed))
        print(f"run {runs}: kills so far {kills}, requests {stored}, sent again since their answer was in flight: {again}")
    assert again <= 4 * (kills["curate"] + kills["principles"] + kills["rl_judge"] + kills["evaluate"]), "at most those in flight"
    api.close()
