"""Runs with arms of their own: a judge alone, a function alone, and three arms side by side, each from a short config file."""

import dataclasses
import json

import pytest
from rich.console import Console

from rlaif_jax.cli import main
from rlaif_jax.config import load_config
from rlaif_jax.errors import UserError
from rlaif_jax.runs.folder import open_run
from rlaif_jax.stages import pipeline
from tests.feedback.fake_api import FakeApi

QUIET = Console(quiet=True)
HEAD = '''import dataclasses

from rlaif_jax.config import ArmConfig, FeedbackConfig, HttpConfig, JudgeConfig
from tests import tiny

API = FeedbackConfig(backend="http", http=HttpConfig("m", "{url}", "", concurrency=8, timeout=5.0))


def long_enough(samples):
    """A reward between 0 and 1; invalid where nothing was written."""
    return [min(len(s.response), 20) / 20 if s.response else None for s in samples]


def config():
    cfg = tiny.config(steps=2, checkpoint_every=2)
'''
CONFIGS = {
    "judge": '''    judge = JudgeConfig("principles_general", game=None)
    return dataclasses.replace(cfg, reward=None, grader=None, feedback=API, judge=judge)
''',
    "function": '''    own = ArmConfig(functions={"long_enough": long_enough})
    return dataclasses.replace(cfg, reward=None, grader=None, arms={"own": own})
''',
    "three": '''    arms = {
        "scored": ArmConfig(reward_model=1.0),
        "judged": ArmConfig(judge=1.0),
        "both": ArmConfig(reward_model=0.5, functions={"long_enough": long_enough}),
    }
    judge = JudgeConfig("principles_general", game=None)
    return dataclasses.replace(cfg, grader=None, feedback=API, judge=judge, arms=arms)
''',
}  # fmt: skip


@pytest.fixture(scope="module")
def api():
    api = FakeApi()
    yield api
    api.close()


def _config(folder, kind: str, url: str):
    path = folder / f"{kind}.py"
    path.write_text(HEAD.replace("{url}", url) + CONFIGS[kind], encoding="utf-8")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 30
    return path


def _report(out):
    return json.loads((out / "report" / "report.json").read_text(encoding="utf-8"))


def _responses(out):
    rows = json.loads((out / "evaluate" / "samples_own.json").read_text(encoding="utf-8"))
    return [row["response"] for row in rows]


@pytest.mark.slow
def test_a_run_against_the_judge_alone_needs_no_pairs_and_no_reward_model(tmp_path, api):
    path, out = _config(tmp_path, "judge", api.url), tmp_path / "run"
    cfg = load_config(path)
    run = open_run(out, dataclasses.replace(cfg, data=dataclasses.replace(cfg.data)), QUIET)
    pipeline.run(run, ["tokenizer"])
    for name in ("pairs_train.jsonl", "pairs_test.jsonl"):
        (out / "tokenizer" / "corpus" / name).unlink()
    run.mark_done("tokenizer", 0.0, run.facts("tokenizer"))  # as if the stage had never written them
    pipeline.run(run)
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["evaluate", "report", "rl_judge", "sft", "tokenizer"]
    report = _report(out)
    assert list(report["rows"]) == ["base", "sft", "rl_judge"] and "judge" in report["rows"]["rl_judge"]
    assert "reward" not in report["rows"]["sft"] and "rl_judge" in report["headline"]


def test_a_run_against_a_function_alone(tmp_path):
    path, out = _config(tmp_path, "function", ""), tmp_path / "run"
    assert main(["run", str(path), "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "own" / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        whole = min(len(row["response"]), 20) / 20 - (0 if row["finished"] else 1.0)
        assert row["reward"] == (pytest.approx(whole, abs=1e-3) if row["response"] else None)
    report = _report(out)
    assert report["rows"]["own"]["long_enough"]["value"] is not None, "the evaluation scores with it too"
    assert any(f["name"].startswith("long_enough against") for f in report["flags"]), "a function's arm is checked too"
    saved = json.loads((out / "config.json").read_text(encoding="utf-8"))["arms"]["own"]["functions"]["long_enough"]
    assert saved["function"] == "function.py:long_enough"
    # Opening, evaluating and exporting the folder imports no code: the function is a name there.
    path.write_text("raise SystemExit('imported')", encoding="utf-8")
    again = open_run(out, console=QUIET)
    before = _responses(out)
    smaller = dataclasses.replace(again.cfg.evaluation, batch_size=5)
    again = dataclasses.replace(again, cfg=dataclasses.replace(again.cfg, evaluation=smaller))
    for stage in ("evaluate", "report"):
        (out / stage / "done.json").unlink()
    pipeline.run(again, ["evaluate", "report"])
    assert "long_enough" not in _report(out)["rows"]["own"]
    assert _responses(out) == before, "the noise of an answer does not depend on the batch size"
    assert any("was not measured in this evaluation" in f["detail"] for f in _report(out)["flags"])
    assert main(["export", str(out), "--out", str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported" / "model.safetensors").exists()


@pytest.mark.slow
def test_three_arms_are_trained_and_compared(tmp_path, api):
    path, out = _config(tmp_path, "three", api.url), tmp_path / "run"
    assert main(["run", str(path), "--out", str(out)]) == 0
    report = _report(out)
    assert list(report["rows"]) == ["base", "sft", "scored", "judged", "both"]
    assert {"both - scored", "judged - scored", "both - sft"} <= set(report["differences"])
    for name in ("judged", "both"):
        assert any(flag["system"] == name for flag in report["flags"]), name
        assert name in report["headline"], name
    metrics = (out / "both" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(metrics[0])
    assert {"reward/reward_model", "reward/long_enough"} <= set(first), "each part is logged under its name"
    assert main(["rl", str(path), "--out", str(out), "--arm", "both"]) == 0, "done before: skipped"
    assert main(["rl", str(path), "--out", str(out), "--arm", "fourth"]) == 2


def test_a_section_set_to_none_takes_its_arm_along(tmp_path, api, capsys):
    path = _config(tmp_path, "three", api.url)
    said = []
    cfg = load_config(path, ["judge=none", "feedback=none"], said.append)
    assert list(cfg.arms) == ["scored", "both"] and "takes out arms.judged" in said[0]
    with pytest.raises(UserError, match=r"arms\.both\.reward_model is 0\.5, but reward is None"):
        load_config(path, ["reward=none"])
    assert list(load_config(path, ["arms.judged=none", "arms.both.reward_model=0.0", "reward=none"]).arms) == ["both"]


def test_a_missing_function_or_data_file_is_found_before_the_first_stage(tmp_path):
    cfg = load_config(_config(tmp_path, "function", ""), ["arms.own.functions.long_enough=nowhere.py:score"])
    run = open_run(tmp_path / "run", cfg, QUIET)
    with pytest.raises(UserError, match=r"nowhere\.py does not exist"):
        pipeline.run(run)
    assert not run.is_done("tokenizer")
    (tmp_path / "data").mkdir()
    cfg = load_config(_config(tmp_path, "function", ""), [f"data.root={tmp_path / 'data'}"])
    with pytest.raises(UserError, match=r"data\.prompts: .*prompts.* does not exist"):
        pipeline.run(open_run(tmp_path / "other", cfg, QUIET))
