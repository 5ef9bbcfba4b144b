"""The grader's data is apart from what the arms learn from; the best of several answers is chosen as RL rewards them."""

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console

from rlaif_jax.config import ArmConfig, EvaluationConfig, FeedbackConfig, HttpConfig, JudgeConfig, RuleConfig
from rlaif_jax.errors import UserError
from rlaif_jax.rewards.base import RewardResult, Sample
from rlaif_jax.runs.data import RunData
from rlaif_jax.runs.folder import open_run
from rlaif_jax.runs.grading import Graders, independence, zero_points
from rlaif_jax.runs.llms import RunLlms
from rlaif_jax.runs.models import RunModels
from rlaif_jax.runs.rewards import RunRewards
from tests import tiny

QUIET = Console(quiet=True)


def _rows(count, **fields):
    return [{name: value.format(i) if isinstance(value, str) else value for name, value in fields.items()} for i in range(count)]


def _open(tmp_path, **changes):
    """A run on data whose pairs partly repeat SFT answers, opened without training anything."""
    files = {
        "sft": _rows(20, prompt="写祝福{}", response="好{}"), "sft_val": _rows(4, prompt="新请求{}", response="新好{}"),
        "pairs_train": _rows(60, prompt="写祝福{}", chosen="好{}", rejected="坏{}"),
        "pairs_test": _rows(6, prompt="考题{}", chosen="考好{}", rejected="考坏{}"),
        "labelled_train": [r for i in range(40) for r in ({"prompt": f"评{i}", "response": f"优{i}", "label": 1},
                                                         {"prompt": f"评{i}", "response": f"劣{i}", "label": 0})],
        "labelled_val": _rows(4, prompt="验{}", response="验{}", label=1),
        "labelled_test": _rows(4, prompt="测{}", response="测{}", label=0),
        "prompts": _rows(10, prompt="强化{}"), "eval_prompts": _rows(4, prompt="评测{}"),
    }  # fmt: skip
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    cfg = tiny.config()
    share = changes.pop("share", 0.0)
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, root=str(tmp_path), grader_share=share), **changes)
    return open_run(tmp_path / "run", cfg, QUIET)


def _apart(rows, others):
    return not {r.prompt for r in rows} & {r.prompt for r in others}


def test_a_pairwise_grader_learns_from_the_pairs_that_are_kept_apart(tmp_path):
    grader = dataclasses.replace(tiny.config().grader, loss="bradley_terry")
    x = _open(tmp_path, grader=grader, share=0.5)
    data = RunData(x)
    own, kept_apart, _ = data.pairs()
    rows = data.grader_rows()[0]
    assert _apart(rows, own) and {r.prompt for r in rows} < {r.prompt for r in kept_apart}
    assert not {r.chosen for r in rows} & {e.response for e in data.sft_examples()}, "SFT's targets are left out"
    assert len(rows) == 20 and independence(x.cfg, data)["grader"]["problem"] == ""


def test_a_pairwise_grader_without_pairs_of_its_own_is_refused(tmp_path):
    grader = dataclasses.replace(tiny.config().grader, loss="bradley_terry")
    with pytest.raises(UserError, match=r"the reward model's own pairs .* Set data\.grader_share=0\.3"):
        _open(tmp_path, grader=grader)
    arms = {"r": ArmConfig(rules=RuleConfig(length_weight=1.0))}
    alone = dataclasses.replace(tiny.config(), grader=grader, reward=None, arms=arms)
    assert alone.grader.loss == "bradley_terry", "without a reward model all pairs are the grader's"


def test_the_judge_and_the_grader_learn_from_different_labelled_prompts(tmp_path):
    feedback = FeedbackConfig(backend="http", http=HttpConfig("m", "http://127.0.0.1:9/v1"))
    x = _open(tmp_path, feedback=feedback, judge=JudgeConfig("principles_general"))
    data = RunData(x)
    found = independence(x.cfg, data)
    assert found["arms"]["judge"] == 44 and found["grader"]["rows"] == 40
    assert [(s["answers"], s["prompts"]) for s in found["grader"]["shared"].values()] == [(0, 0)] * 3
    assert _apart(data.grader_rows()[0], [r for part in data.game_rows() for r in part])


def test_without_a_judge_that_learns_the_grader_gets_every_labelled_row(tmp_path):
    assert len(RunData(_open(tmp_path)).grader_rows()[0]) == 80


def test_a_grader_that_is_not_known_to_be_independent_says_so(tmp_path):
    x = _open(tmp_path)
    foreign = dataclasses.replace(x.cfg, grader=dataclasses.replace(x.cfg.grader, folder="/some/model"))
    assert "does not know what that was trained on" in independence(foreign, RunData(x))["grader"]["problem"]
    assert "grader" in zero_points(x.cfg) and "grader" not in zero_points(foreign), "its score has no zero point"


def test_reference_answers_are_of_held_out_requests(tmp_path):
    found = RunData(_open(tmp_path)).reference_answers(8)
    assert [e.response for e in found] == [*(f"考好{i}" for i in range(6)), "新好0", "新好1"]


def test_the_best_of_several_is_chosen_by_the_arms_reward_with_its_rules_and_penalty(tmp_path):
    """A cut-off answer with 2.0 loses to a whole one with 1.9, and the constraint counts as it does in RL."""
    arms = {"rl": ArmConfig(reward_model=1.0, rules=RuleConfig(constraint_weight=1.0))}
    x = _open(tmp_path, arms=arms)
    models = RunModels(x)
    graders = Graders.__new__(Graders)
    graders._x, graders._rewards = x, RunRewards(x, models, RunLlms(x, models))
    scores = {"whole": 1.9, "cut": 2.0}
    graders.rewards = {"reward": lambda samples: RewardResult(
        np.array([scores["whole" if s.finished else "cut"] for s in samples], np.float32), np.ones(len(samples), bool)
    )}  # fmt: skip
    choose = graders.chooser(2)
    values = choose([Sample("写祝福", "好", False), Sample("写祝福", "好", True)]).values
    assert values.tolist() == pytest.approx([1.0, 1.9])
    kept, broken = choose([Sample("写祝福，不超过5个字", "好", True), Sample("写祝福，不超过5个字", "好" * 9, True)]).values
    assert (kept, broken) == (pytest.approx(2.9), pytest.approx(1.9))


def test_without_a_feedback_model_nothing_is_debated():
    cfg = tiny.config()
    assert dataclasses.replace(cfg, feedback=None, judge=None, evaluation=EvaluationConfig(debate=4)).debated_prompts == 0
