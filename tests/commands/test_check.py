"""`rlaif check` and the dry run: every mistake that is known before the first stage, in seconds, and nothing is written."""

import dataclasses
import json

import pytest

from rlaif_jax.cli import main
from rlaif_jax.config import ArmConfig, DataConfig, FeedbackConfig, HttpConfig, JudgeConfig, to_dict
from rlaif_jax.config.overrides import overridden
from tests import tiny
from tests.config.test_config import ROOT
from tests.feedback.fake_api import FakeApi
from tests.runs.test_data_check import _good


@pytest.fixture(scope="module")
def api():
    server = FakeApi()
    yield server
    server.close()


def _config(tmp_path, *changes, **sections):
    cfg = overridden(dataclasses.replace(tiny.config(), **sections), changes)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(cfg)), encoding="utf-8")
    return str(path)


def _rlaif(capsys, *args):
    code = main(list(args))
    found = capsys.readouterr()
    return code, found.out, found.err


def test_a_right_config_passes_with_one_real_call(tmp_path, capsys, api):
    _good(tmp_path / "data")
    (tmp_path / "mine.py").write_text("def short(samples):\n    return [1.0] * len(samples)\n")
    feedback = FeedbackConfig(backend="http", http=HttpConfig("m", api.url, ""), prompts="zh")
    arms = {"mine": ArmConfig(judge=1.0, functions={"short": f"{tmp_path / 'mine.py'}:short"})}
    config = _config(tmp_path, data=DataConfig(root=str(tmp_path / "data")), feedback=feedback, judge=JudgeConfig(), arms=arms)
    before = api.requests
    code, out, err = _rlaif(capsys, "check", config, "--out", str(tmp_path / "run"))
    assert code == 0, err
    assert api.requests == before + 1 and "gives log-probabilities" in out and "data.sft: 40 rows" in out and "MiB" in out
    assert "no mistake found" in out and not (tmp_path / "run").exists()


def test_every_mistake_is_in_one_list(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    _good(tmp_path / "data")
    (tmp_path / "data" / "prompts.jsonl").unlink()
    feedback = FeedbackConfig(backend="http", http=HttpConfig("m", "http://127.0.0.1:9/v1", timeout=2.0), prompts="de")
    config = _config(
        tmp_path, "judge.principles=/nope.txt", "language=en", "arms.mine.functions.f=nowhere.py:f", "reward.folder=no/model",
        "evaluation.best_of=0", data=DataConfig(root=str(tmp_path / "data")), feedback=feedback, judge=JudgeConfig(),
    )  # fmt: skip
    expected = ("data.prompts: data file", "OPENAI_API_KEY is not set", "'de'", "/nope.txt", "arms.mine.functions.f", "nowhere.py",
                "hf download no/model --local-dir")  # fmt: skip
    for command in (["check", config], ["run", config, "--dry-run"], ["run", config]):
        code, _, err = _rlaif(capsys, *command, "--out", str(tmp_path / "run"))
        assert code == 2
        assert [part for part in expected if part not in err] == [], (command[0], err)
        assert not list(tmp_path.glob("run/*/*")), "no stage has begun"


def test_a_dead_judge_names_its_fields(tmp_path, capsys):
    _good(tmp_path / "data")
    feedback = FeedbackConfig(backend="http", http=HttpConfig("m", "http://127.0.0.1:9/v1", "", timeout=2.0))
    for mode in ("soft", "binary"):
        config = _config(tmp_path, f"judge.mode={mode}", data=DataConfig(root=str(tmp_path / "data")), feedback=feedback,
                         judge=JudgeConfig())  # fmt: skip
        code, _, err = _rlaif(capsys, "check", config, "--out", str(tmp_path / "run"))
        assert code == 2 and "127.0.0.1:9" in err and "feedback.http.base_url" in err, err


def test_a_large_model_is_not_trained_from_random_weights_by_mistake(tmp_path, capsys):
    big = ("model.width=2048", "model.ffn=8192", "model.layers=24", "model.heads=16", "model.head_dim=128", "model.vocab_size=512")
    config = _config(tmp_path, *big)
    code, _, err = _rlaif(capsys, "run", config, "--out", str(tmp_path / "run"))
    assert code == 2 and "model.init_from is empty" in err and "'scratch'" in err
    code, out, _ = _rlaif(capsys, "run", config, "--out", str(tmp_path / "run"), "--dry-run")
    assert code == 0 and "would start from random weights" in out
    code, out, err = _rlaif(capsys, "check", config, "--out", str(tmp_path / "x"), "--set", "model.init_from=scratch")
    assert code == 0 and "random" not in out, err


def test_a_folder_that_another_config_has_used_is_told(tmp_path, capsys):
    config = _config(tmp_path)
    assert _rlaif(capsys, "tokenizer", config, "--out", str(tmp_path / "run"))[0] == 0
    code, _, err = _rlaif(capsys, "check", config, "--out", str(tmp_path / "run"), "--set", "seed=8")
    assert code == 2 and "tokenizer has used" in err


def test_the_config_for_own_data_needs_four_csv_files_and_an_api(tmp_path, capsys, api):
    data = tmp_path / "data"
    data.mkdir()
    for name, first in (("prompts", 0), ("eval_prompts", 100)):
        lines = "".join(f"Write a tagline for product {first + i}.\n" for i in range(20))
        (data / f"{name}.csv").write_text("prompt\n" + lines)
    rows = "".join(f'Write a tagline for tool {i}.,"Tool {i}, and done."\n' for i in range(20))
    (data / "sft.csv").write_text("prompt,response\n" + rows)
    settings = [f"data.root={data}", f"feedback.http.base_url={api.url}", "feedback.http.key_variable="]
    command = [str(ROOT / "configs" / "own_data.py"), "--out", str(tmp_path / "run")]
    command += [part for item in settings for part in ("--set", item)]
    code, out, err = _rlaif(capsys, "check", *command)
    assert code == 0, err
    assert "data.sft: 20 rows" in out and "RL prompts: 18 to train on, 2 held out" in out and "gives log-probabilities" in out
    code, out, err = _rlaif(capsys, "run", *command, "--dry-run")
    assert code == 0 and "curate" in out and "rl_judge" in out, err
    (data / "sft.csv").unlink()
    assert "data.sft: data file" in _rlaif(capsys, "check", *command)[2]
