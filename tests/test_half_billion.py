"""A folder of Qwen2.5-0.5B's sizes with random weights: import, one step of GRPO with LoRA, export, within 16 GiB."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.large_models import random_folder
from rlaif_jax.config import RewardConfig
from rlaif_jax.config.values import to_dict
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.models.model_config import ModelConfig, parameter_count, preset
from rlaif_jax.sampling.filters import SamplingConfig
from rlaif_jax.trainers.config import RlConfig, TrainConfig
from rlaif_jax.trainers.metrics_log import read_metrics
from rlaif_jax.trainers.optimizer import OptimizerConfig
from tests import hf, tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LIMIT = 16 * 2**30
# Peak resident memory of the command, in bytes, on the last line (getrusage would tell that of the process it was forked from).
_RUN = """
import re, sys
from pathlib import Path
from rlaif_jax.cli import main
code = main(sys.argv[1:])
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]))
sys.exit(code)
"""


def _rlaif(*command) -> int:
    """Runs it in a process of its own; gives its peak memory in bytes."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "XLA_FLAGS": ""}
    out = subprocess.run([sys.executable, "-c", _RUN, *map(str, command)], env=env, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr[-2000:]
    return int(out.stdout.split()[-1])


def _config(init_from: Path) -> dict:
    """One step of each stage over bfloat16 weights."""
    train = TrainConfig(steps=1, batch_size=2, checkpoint_every=1, log_every=1, optimizer=OptimizerConfig(1e-2))
    model = ModelConfig(init_from=str(init_from), param_dtype="bfloat16", compute_dtype="bfloat16", remat="full", logit_chunk=32)
    rl = RlConfig(
        dataclasses.replace(train, batch_size=2), group_size=4, num_minibatches=1, sampling=SamplingConfig(max_tokens=16),
        max_prompt_tokens=48, eval_prompts=2,
    )  # fmt: skip
    reward = RewardConfig(train, max_length=96)
    return to_dict(dataclasses.replace(
        tiny.config(), model=model, lora=LoraConfig(), sft=None, reward=reward, grader=None, rl=rl
    ))  # fmt: skip


def test_from_a_folder_through_a_lora_step_to_a_folder(tmp_path, one_device):
    torch = pytest.importorskip("torch")
    import transformers

    folder, imported, run, out = (tmp_path / name for name in ("theirs", "imported", "run", "ours"))
    shapes = preset("qwen2.5-0.5b")
    random_folder(folder, shapes, one_device, shard_bytes=200_000_000)
    assert len(list(folder.glob("*.safetensors"))) >= 4
    config = tmp_path / "config.json"
    config.write_text(json.dumps(_config(imported)))
    peaks = {"import": _rlaif("import", folder, "--out", imported)}
    for stage in ("tokenizer", "reward", "rl"):
        peaks[stage] = _rlaif(stage, config, "--out", run)
    peaks["export"] = _rlaif("export", run, "--stage", "rl", "--out", out)
    print({name: f"{peak / 2**30:.2f} GiB" for name, peak in peaks.items()})
    assert max(peaks.values()) < LIMIT, peaks
    rows = [r for r in read_metrics(run / "rl" / "metrics.jsonl") if "loss" in r]
    assert len(rows) == 1 and rows[0]["grad_norm"] > 0 and rows[0]["skipped"] == 0

    before, after = hf.tensors_of(folder), hf.tensors_of(out)
    assert before.keys() == after.keys()
    moved = {name for name in before if not np.array_equal(before[name].view(np.uint16), after[name].view(np.uint16))}
    assert moved and all(name.endswith("proj.weight") for name in moved), "the adapter's sum, and nothing else"
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.num_parameters() == parameter_count(shapes) and model.dtype == torch.bfloat16
