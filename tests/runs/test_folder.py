"""Run folders: of this version, of an earlier one, of a later one; and what another version left half-finished."""

import dataclasses
import json

import pytest
from rich.console import Console

from rlaif_jax.cli import main
from rlaif_jax.config import ArmConfig, FeedbackConfig, HttpConfig, JudgeConfig, RuleConfig, old_names, to_dict
from rlaif_jax.errors import UserError
from rlaif_jax.runs.folder import VERSION, open_run
from rlaif_jax.stages import pipeline
from tests import tiny

QUIET = Console(quiet=True)
SECTIONS = {  # where the classes of the renamed fields are, in a config of the first version
    "RlConfig": ("rl",), "TrainConfig": ("sft.train", "reward.train", "rl.train"), "PolicyConfig": ("rl.policy",),
    "KlConfig": ("rl.kl",), "ShapingConfig": ("rl.shaping",), "RewardConfig": ("reward",), "ModelConfig": ("model",),
}  # fmt: skip


def _first_version(cfg) -> dict:
    """The config.json that the first version would have written."""
    values = json.loads(json.dumps(to_dict(cfg)))
    for kind, places in SECTIONS.items():
        for place in places:
            node = values
            for name in place.split("."):
                node = node[name]
            for old, new in old_names._RENAMED[kind].items():
                node[old] = node.pop(new)
            node.pop("eval_every", None)
    arms = values.pop("arms")
    del values["language"]
    values["rl_rules"] = {"model_weight": 1.0, **arms["rl"]["rules"]}
    values["rl_judge"] = None
    return values


@pytest.fixture(scope="module")
def old_run(tmp_path_factory):
    """A finished run whose folder looks as the first version left it."""
    arms = {"rl": ArmConfig(reward_model=1.0, rules=RuleConfig(repetition_weight=0.5))}
    cfg = dataclasses.replace(tiny.config(steps=2, checkpoint_every=2), grader=None, arms=arms)
    out = tmp_path_factory.mktemp("old") / "run"
    pipeline.run(open_run(out, cfg, QUIET))
    (out / "config.json").write_text(json.dumps(_first_version(cfg)), encoding="utf-8")
    for marker in out.glob("*/begun.json"):
        marker.unlink()
    return out, cfg


@pytest.mark.slow
def test_a_run_of_the_first_version_opens_evaluates_and_exports(old_run, tmp_path):
    out, cfg = old_run
    assert open_run(out, console=QUIET).cfg == cfg
    before = (out / "evaluate" / "samples_rl.json").read_bytes()
    for stage in ("evaluate", "report"):
        (out / stage / "done.json").unlink()
    assert main(["evaluate", str(out / "config.json"), "--out", str(out)]) == 0
    assert main(["report", str(out / "config.json"), "--out", str(out)]) == 0
    assert (out / "evaluate" / "samples_rl.json").read_bytes() == before, "the same weights, the same answers"
    assert main(["export", str(out), "--stage", "rl", "--out", str(tmp_path / "exported")]) == 0
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["version"] == VERSION


def test_a_stage_that_another_version_left_half_finished_is_refused_in_one_line(old_run, capsys):
    out, _ = old_run
    (out / "rl" / "done.json").unlink()
    (out / "rl" / "begun.json").unlink(missing_ok=True)
    assert main(["rl", str(out / "config.json"), "--out", str(out)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "left half-finished in run-folder format 1" in error and str(out / "rl") in error


def test_a_run_of_a_later_version_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"version": VERSION + 1, **to_dict(tiny.config())}))
    with pytest.raises(UserError, match="made by a later version"):
        open_run(tmp_path)


def test_the_principles_of_the_first_version_are_found_in_their_old_folder(tmp_path):
    feedback = FeedbackConfig(backend="http", http=HttpConfig("m", "http://127.0.0.1:1/v1", ""))
    cfg = dataclasses.replace(tiny.config(), feedback=feedback, judge=JudgeConfig())
    run = open_run(tmp_path / "run", cfg, QUIET)
    assert run.folder("principles") == tmp_path / "run" / "principles"
    (tmp_path / "run" / "judge").mkdir()
    (tmp_path / "run" / "judge" / "done.json").write_text("{}")
    assert run.folder("principles") == tmp_path / "run" / "judge" and run.is_done("principles")
