"""The report's stage, on evaluations of earlier versions and on figures that a run writes."""

import dataclasses
import json

import pytest
from rich.console import Console

from rlaif_jax.config import ArmConfig, RuleConfig
from rlaif_jax.config.stages import stage_of
from rlaif_jax.evaluation.compare import figures
from rlaif_jax.runs.folder import open_run
from rlaif_jax.stages import report
from rlaif_jax.stages.costs import cost_table, own_stages
from rlaif_jax.stages.report import candidates, load_systems
from tests import tiny


def _old_row(i):
    scores = {"excellent": 1.0, "compliance": None if i % 2 else 1.0, "grader": 1.0, "reward": 0.5}
    return {"prompt": f"请求{i}", "response": f"好{i}", "tokens": 3, "finished": True, "scores": scores}


def test_an_evaluation_of_an_earlier_version_is_read(tmp_path):
    (tmp_path / "samples_sft.json").write_text(json.dumps([_old_row(i) for i in range(4)]), encoding="utf-8")
    (system,) = load_systems(tmp_path, {"sft": "after SFT"}, zero={"grader": 0.0})
    assert (figures(system)["compliance"].n, figures(system)["compliance"].missing) == (2, 0), "no number: it did not apply"
    (system,) = load_systems(tmp_path, {"sft": "after SFT"}, zero={})
    assert "grader" not in system.score_names, "a verdict of a score without a zero point meant nothing"


def test_an_old_evaluation_folder_gives_a_report(tmp_path):
    x = open_run(tmp_path / "run", tiny.config(), Console(quiet=True))
    folder = x.folder("evaluate")
    folder.mkdir()
    for name in ("base", "sft", "rl"):
        (folder / f"samples_{name}.json").write_text(json.dumps([_old_row(i) for i in range(4)]), encoding="utf-8")
    (folder / "graders.json").write_text("{}", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(report, "run_facts", lambda x: {"policy": "a small one"})
        report._report(x, stage_of(x.cfg, "report"))
    found = json.loads((x.folder("report") / "report.json").read_text(encoding="utf-8"))
    assert any("did not check whether it is independent" in note for note in found["notes"])
    table = next(t for t in found["tables"] if t["title"] == "Graders against held-out labels")
    assert table["rows"][0][1].startswith("not checked")
    assert found["settings"]["model.width"][0] == "32" and "None" not in json.dumps(found["settings"])


def test_each_arm_has_its_own_signal_and_what_says_nothing_about_it():
    arms = {
        "scored": ArmConfig(reward_model=1.0, rules=RuleConfig(constraint_weight=1.0)),
        "both": ArmConfig(reward_model=0.5, functions={"own": len}), "ruled": ArmConfig(rules=RuleConfig(length_weight=1.0)),
    }  # fmt: skip
    found = {c.name: c for c in candidates(dataclasses.replace(tiny.config(), arms=arms))}
    assert [found[name].own for name in arms] == [("reward",), ("reward", "own"), ("ruled_reward",)]
    assert not found["scored"].is_independent("compliance"), "its rule reads the same constraints"
    assert found["ruled"].is_independent("reward") and found["both"].reference == "sft"


def test_costs_are_those_of_the_stages_that_an_arm_needs(tmp_path):
    cfg = tiny.config()
    x = open_run(tmp_path / "run", cfg, Console(quiet=True))
    spending = {"requests": 40, "cached": 2, "prompt_tokens": 900, "completion_tokens": 100, "money": 0.25}
    for name, facts in {"sft": {"seconds": 600.0}, "reward": {"seconds": 60.0, "examples": 100},
                        "rl": {"seconds": 120.0, "spending": spending}, "grader": {"seconds": 1e6}}.items():  # fmt: skip
        x.folder(name).mkdir()
        (x.folder(name) / "done.json").write_text(json.dumps(facts), encoding="utf-8")
    assert [s.name for s in own_stages(cfg, stage_of(cfg, "rl"))] == ["rl", "reward"]
    rows = [_old_row(i) for i in range(4)]
    for name in ("sft", "rl"):
        (tmp_path / f"samples_{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    systems = load_systems(tmp_path, {"sft": "", "rl": ""})
    line = dict(zip(*(lambda t: (t.columns, t.rows[0]))(cost_table(x, systems, candidates(cfg), {})), strict=True))
    assert line | {"gain": ""} == {
        "arm": "rl", "labelled answers": "0", "preference pairs": "100", "LLM requests": "40 (and 2 from the cache)",
        "LLM tokens": "1,000", "money": "0.25", "minutes": "3.0", "gain": "",
    }  # fmt: skip
