"""The table of stages: what a config has, needs, reads and leaves; every other place reads it."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlaif_jax.cli import main
from rlaif_jax.config import ArmConfig, DpoConfig, FeedbackConfig, HttpConfig, JudgeConfig, RunConfig
from rlaif_jax.config.stages import REPORT, STAGES, final_policy, needed_by, policy_stages, stage_of, stages_of
from rlaif_jax.errors import UserError
from tests import tiny

ROOT = Path(__file__).parents[2]
API = FeedbackConfig(backend="http", http=HttpConfig("m", "http://127.0.0.1:1/v1", ""))


def test_a_config_has_the_stages_of_its_sections_in_order():
    assert list(stages_of(tiny.config())) == ["tokenizer", "sft", "reward", "grader", "rl", "evaluate", "report"]
    full = dataclasses.replace(tiny.config(), feedback=API, judge=JudgeConfig(), dpo=DpoConfig())
    assert list(stages_of(full)) == [
        "tokenizer", "sft", "reward", "grader", "principles", "dpo", "rl", "rl_judge", "evaluate", "report"
    ]  # fmt: skip
    judged = dataclasses.replace(tiny.config(), feedback=API, judge=JudgeConfig(game=None), reward=None, grader=None)
    assert list(stages_of(judged)) == ["tokenizer", "sft", "rl_judge", "evaluate", "report"]
    assert [s.name for s in policy_stages(full)] == ["sft", "dpo", "rl", "rl_judge"] and final_policy(judged) == "rl_judge"


def test_a_stage_needs_what_the_config_has_of_its_forerunners():
    cfg = tiny.config()
    assert [s.name for s in needed_by(cfg, stage_of(cfg, "rl"))] == ["tokenizer", "sft", "reward"]
    assert [s.name for s in needed_by(cfg, stage_of(cfg, "evaluate"))] == ["tokenizer", "sft", "rl", "reward", "grader"]
    assert [s.name for s in needed_by(cfg, REPORT)] == ["evaluate"]


@pytest.mark.parametrize("name", ["feedback", "curate", "grader", "principles", "dpo", "rl_judge"])
def test_a_stage_that_the_config_lacks_is_one_line(name, tmp_path, capsys):
    config = tmp_path / "config.py"
    text = "import dataclasses\nfrom tests import tiny\n\n\ndef config():\n"
    text += "    return dataclasses.replace(tiny.config(), grader=None)\n"
    config.write_text(text)
    assert main([name, str(config), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"has no stage '{name}'" in error and "it has tokenizer, sft, reward, rl" in error
    assert not (tmp_path / "run").exists()


def test_every_stage_of_the_table_is_a_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(re.search(rf"^    {stage.name}\b", text, re.MULTILINE) for stage in STAGES)
    assert main(["judge", "optimize", str(ROOT / "configs" / "greetings_lora.py"), "--out", "nowhere"]) == 2
    assert "has no stage 'principles' (set judge.game={})" in capsys.readouterr().err


def test_an_arm_may_not_be_called_like_another_stage():
    cfg = dataclasses.replace(tiny.config(), arms={"sft": ArmConfig(reward_model=1.0)})
    with pytest.raises(UserError, match="another stage has that name"):
        stages_of(cfg)


def test_reads_names_fields_that_exist():
    from rlaif_jax.config.describe import all_fields

    known = {field.name for field in all_fields()} | {"", "language"}
    for stage in (*STAGES, *(s for s in stages_of(RunConfig()).values() if s.kind == "rl")):
        assert set(stage.reads) <= known, stage.name
        assert stage.fixed is None or set(stage.fixed(RunConfig())) <= known | {"arms.rl"}, stage.name


@pytest.mark.slow
def test_two_stages_renamed_in_the_table_alone(tmp_path):
    """The pipeline, an export and the report work when `sft` and `reward` have other names there."""
    shutil.copytree(ROOT / "rlaif_jax", tmp_path / "rlaif_jax")
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__", "golden"))
    table = tmp_path / "rlaif_jax" / "config" / "stages.py"
    text = table.read_text(encoding="utf-8")
    for old, new in (('    "sft", "train"', '    "warmup", "train"'), ('    "reward", "train"', '    "scorer", "train"')):
        assert text.count(old) == 1
        text = text.replace(old, new)
    table.write_text(text, encoding="utf-8")
    config = "from tests import tiny\n\n\ndef config():\n    return tiny.config(steps=2, checkpoint_every=2)\n"
    (tmp_path / "config.py").write_text(config)
    env = os.environ | {"PYTHONPATH": str(tmp_path), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    out = tmp_path / "run"

    def rlaif(*args: str) -> None:
        done = subprocess.run([sys.executable, "-m", "rlaif_jax.cli", *args], env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    rlaif("run", "config.py", "--out", str(out))
    for stage in ("warmup", "scorer", "rl"):
        assert (out / stage / "done.json").exists()
        rlaif("export", str(out), "--stage", stage, "--out", str(tmp_path / f"export-{stage}"))
    assert not (out / "sft").exists() and not (out / "reward").exists()
    report = json.loads((out / "report" / "report.json").read_text(encoding="utf-8"))
    assert list(report["rows"]) == ["base", "warmup", "rl"] and "reward" in report["rows"]["rl"]
    rlaif("report", "config.py", "--out", str(out))
    rlaif("run", "config.py", "--dry-run")
