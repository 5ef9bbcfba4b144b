"""The benchmark of large models, tried at a tiny size: every part of it runs and tells its figures."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import large_models

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["lora", "full"])
def test_it_runs_from_a_folder_to_a_folder(case, tmp_path):
    out = tmp_path / "out"
    sizes = {"preset": "tiny-1m", "prompts": 2, "prompt-tokens": 48, "response-tokens": 8, "accumulation": 2, "steps": 2}
    command = [sys.executable, "benchmarks/large_models.py", case, "--out", str(out)]
    command += [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads((out / "figures.json").read_text())
    assert list(figures["parts"]) == ["random weights", "tokenizer", "reward", "rl", "export"]
    assert all(part["seconds"] > 0 and part["host"] > 0 for part in figures["parts"].values())
    assert figures["steps"] == 2 and figures["skipped"] == 0 and all(map(math.isfinite, figures["rl"].values()))
    assert figures["rl"]["grad_norm"] > 0, "answers differ, so that the updates are real ones"
    assert (out / "exported" / "model.safetensors").exists() and "random weights" in done.stdout
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 1 and "choose another" in again.stderr


def test_the_cases_are_the_papers_setting(tmp_path):
    args = large_models.arguments(["full", "--out", str(tmp_path), "--set", "rl.train.optimizer.moments=int8"])
    cfg = large_models.config("full", tmp_path, args)
    assert cfg.lora is None and large_models.config("lora", tmp_path, args).lora is not None
    assert (cfg.rl.train.batch_size, cfg.rl.group_size, cfg.rl.max_prompt_tokens, cfg.rl.sampling.max_tokens) == (32, 4, 256, 512)
    assert cfg.rl.train.optimizer.moments == "int8" and cfg.model.param_dtype == "bfloat16"
