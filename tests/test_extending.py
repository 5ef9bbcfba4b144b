"""The recipes of docs/extending.md, run as they are printed, but for sizes."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from rlaif_jax.cli import main
from rlaif_jax.commands import generate
from rlaif_jax.models.hf_config import FAMILIES
from tests import hf

TEXT = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
RECIPES = {re.match(r"# (\w+)\.py", code)[1]: code for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)}
SMALL = [
    "data.corpus.sft=200", "data.corpus.pairs=100", "data.corpus.labelled=60", "data.corpus.rl_prompts=40",
    "data.corpus.eval_prompts=8", "tokenizer.vocab_size=512", "model.width=32", "model.ffn=64", "model.layers=2", "model.heads=4",
    "model.kv_heads=2", "model.head_dim=8", "sft.train.steps=2", "rl.train.steps=2", "rl.sampling.max_tokens=12",
    "rl.samples_every=1", "evaluation.sampling.max_tokens=12",
]  # fmt: skip


def test_there_are_four_recipes_of_at_most_40_lines():
    assert list(RECIPES) == ["my_reward", "my_loss", "my_family", "my_judge"]
    assert all(len(code.splitlines()) <= 40 for code in RECIPES.values())


def _run(name: str, tmp_path, *more: str) -> Path:
    (tmp_path / f"{name}.py").write_text(RECIPES[name], encoding="utf-8")
    settings = [part for item in (*SMALL, *more) for part in ("--set", item)]
    assert main(["run", str(tmp_path / f"{name}.py"), "--out", str(tmp_path / "run"), *settings]) == 0
    return tmp_path / "run"


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_reward(tmp_path):
    out = _run("my_reward", tmp_path)
    for row in _rows(out / "short" / "samples.jsonl"):
        assert row["reward"] == (float(len(row["response"]) <= 30) - (not row["finished"]) if row["response"] else None)
    assert json.loads((out / "report" / "report.json").read_text(encoding="utf-8"))["rows"]["short"]["short"]["value"] is not None


@pytest.mark.slow
def test_an_algorithm(tmp_path):
    out = _run("my_loss", tmp_path, "reward.train.steps=2")
    metrics = _rows(out / "rl" / "metrics.jsonl")
    assert {"loss", "kl", "reward"} <= set(metrics[0])
    assert json.loads((out / "config.json").read_text())["rl"]["policy"]["loss"] == "my_loss.py:tanh_loss"


@pytest.mark.slow
def test_a_model_family(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch")
    folder = hf.instruct_folder(tmp_path / "folder")  # Qwen2: the same names, and biases that Llama does not have
    model = hf.random_model("llama", vocab_size=640, rope_parameters=hf.PLAIN)
    hf.save(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "my_llama", "architectures": ["MyLlamaForCausalLM"]}))
    monkeypatch.setattr(sys, "argv", ["my_family.py", str(folder)])
    (tmp_path / "my_family.py").write_text(RECIPES["my_family"], encoding="utf-8")
    try:
        runpy.run_path(str(tmp_path / "my_family.py"))
    finally:
        FAMILIES.pop("my_llama", None)
    ours = generate._CONTROL.sub("", capsys.readouterr().out)  # as the command prints it
    (folder / "config.json").write_text(json.dumps(config))
    command = ["generate", "--model", str(folder), "--prompt", "Write a short greeting.", "--temperature", "0"]
    assert main([*command, "--max-tokens", "16"]) == 0
    plain = capsys.readouterr().out.split("\n", 1)[1]
    assert len(ours.strip()) > 0 and ours.strip().removesuffix(" ...") == plain.strip(), "the same arithmetic as Llama's"


def test_a_judge_backend(tmp_path):
    out = _run("my_judge", tmp_path)
    assert (out / "replies.sqlite").exists()
    for row in _rows(out / "rl_judge" / "samples.jsonl"):
        assert -1.0 <= row["reward"] <= 1.0
    assert json.loads((out / "config.json").read_text())["feedback"]["backend"] == "my_judge.py:LengthJudge"
