"""Figures of a system and paired differences."""

import dataclasses
import json
import math

import numpy as np
import pytest

from rlaif_jax.errors import UserError
from rlaif_jax.evaluation.compare import (
    GradedSample,
    System,
    check_systems,
    difference,
    figures,
    intervals_apart,
    is_rate,
    metric_names,
    win_rate,
)
from rlaif_jax.evaluation.scores import Figure
from rlaif_jax.evaluation.text import label
from rlaif_jax.language import EN


def system(name, scores, responses=None, prompts=None):
    responses = responses or [f"新年好{i}" for i in range(len(scores))]
    prompts = prompts or [f"请求{i}" for i in range(len(scores))]
    rows = zip(prompts, responses, scores, strict=True)
    return System(name, "", tuple(GradedSample(p, r, len(r), True, s) for p, r, s in rows))


def test_rates_means_and_missing():
    rows = [{"excellent": 1, "compliance": None, "reward": 2.5}, {"excellent": 0, "compliance": 1, "reward": -1.5}, {}]
    found = figures(system("sft", rows, ["福" * 10, "福寿", "福"]))
    assert (found["excellent"].value, found["excellent"].n, found["excellent"].missing) == (0.5, 2, 1)
    assert (found["compliance"].value, found["compliance"].n, found["compliance"].missing) == (1.0, 1, 2)
    assert found["compliance"].low > 0.2  # Wilson: one success of one is no certainty
    assert found["reward"].value == 0.5
    assert found["length_chars"].value == pytest.approx(13 / 3)
    assert found["self_repetition"].value == pytest.approx(1 / 3)
    assert found["unique_responses"].value == 1
    assert found["finished"].value == 1


def test_a_binary_length_is_still_a_mean():
    found = figures(system("base", [{}] * 4, ["福", "", "福", ""]))
    assert found["length_chars"].value == 0.5
    assert (found["length_chars"].low, found["length_chars"].high) == (0.0, 1.0)  # percentile bootstrap, not Wilson


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("nan"), 1e308, -1e308, 10**400 > 1 and 1e300])
def test_a_number_that_is_none_is_counted_and_never_an_error(bad):
    a = system("sft", [{"reward": bad}, {"reward": 1.0}, {"reward": 3e38}])
    assert a.values("reward") == [None, 1.0, 3e38]
    found = figures(a)["reward"]
    assert (found.n, found.missing) == (2, 1) and math.isfinite(found.high)
    assert difference(a, dataclasses.replace(a, name="rl"), "reward").missing == 1


def test_not_applicable_is_not_invalid():
    rows = [GradedSample(f"请求{i}", "好", 1, True, {"compliance": v}, none) for i, (v, none) in enumerate(
        [(1.0, ()), (None, ("compliance",)), (None, ())]
    )]  # fmt: skip
    found = figures(System("sft", "", tuple(rows)))["compliance"]
    assert (found.n, found.missing) == (1, 1) and System("sft", "", tuple(rows)).applicable("compliance") == 2


def test_win_rate_needs_no_zero_point():
    a, b = system("sft", [{"s": v} for v in (1, 2, 3, 4)]), system("rl", [{"s": v} for v in (9, 2, 0, 5)])
    assert win_rate(a, b, "s").value == 0.625 and win_rate(b, a, "s").value == 0.375


def test_reserved_names_and_json():
    with pytest.raises(UserError, match="built-in"):
        GradedSample("请求", "好", 1, True, {"distinct_2": 0.5})
    row = dataclasses.asdict(GradedSample("请求", "好", 1, True, {"reward": np.float32(0.5), "excellent": None}))
    assert GradedSample(**json.loads(json.dumps(row))).scores == {"reward": 0.5, "excellent": None}


def test_different_prompts_are_refused():
    a = system("sft", [{"reward": 1.0}] * 3)
    with pytest.raises(UserError, match="prompt 1"):
        difference(a, system("rl", [{"reward": 1.0}] * 3, prompts=["请求0", "请求2", "请求1"]), "reward")
    with pytest.raises(UserError, match="3 and 2 samples"):
        check_systems([a, system("rl", [{"reward": 1.0}] * 2)])
    with pytest.raises(UserError, match="same name"):
        check_systems([a, a])
    with pytest.raises(UserError, match="no score 'excellant'"):
        difference(a, a, "excellant")


def test_difference_is_paired():
    """A constant gain on prompts of very different difficulty: certain when paired, hidden when not."""
    rng = np.random.default_rng(0)
    easy = rng.normal(0, 10, 60)
    gain = 1 + rng.normal(0, 0.1, 60)
    a, b = (system(n, [{"reward": v} for v in x]) for n, x in (("sft", easy), ("rl", easy + gain)))
    change = difference(a, b, "reward")
    assert change.value == pytest.approx(gain.mean())
    assert 0.9 < change.low < change.value < change.high < 1.1
    assert not intervals_apart(figures(a)["reward"], figures(b)["reward"])
    assert difference(b, a, "reward").value == pytest.approx(-gain.mean())


def test_difference_leaves_out_pairs_without_verdict():
    a = system("sft", [{"excellent": 0}, {"excellent": None}, {"excellent": 1}, {"excellent": 0}])
    b = system("rl", [{"excellent": 1}, {"excellent": 1}, {"excellent": None}, {"excellent": 0}])
    change = difference(a, b, "excellent")
    assert (change.value, change.n, change.missing) == (0.5, 2, 2)
    same = difference(a, a, "excellent")
    assert (same.value, same.low, same.n) == (0.0, None, 3)


def test_intervals_apart():
    low, high = Figure(0.2, 0.1, 0.3, 9), Figure(0.5, 0.4, 0.6, 9)
    assert intervals_apart(low, high) and intervals_apart(high, low)
    assert not intervals_apart(low, Figure(0.4, 0.3, 0.5, 9))
    assert not intervals_apart(low, Figure(0.9, None, None, 1))


def test_is_rate_looks_at_all_systems():
    a, b = system("sft", [{"grader": 1.0}]), system("rl", [{"grader": 0.4}])
    assert is_rate([a], "grader") and not is_rate([a, b], "grader")
    assert is_rate([a], "finished") and not is_rate([a], "distinct_2")


def test_an_english_system_is_measured_in_words():
    rows = ["Happy birthday, dear Ann!", "Happy birthday, Bob"]
    found = figures(system("sft", [{}] * 2, rows, ["Write a greeting", "Write another greeting"]))
    assert found["length_words"].value == 3.5 and "length_chars" not in found
    assert found["distinct_1"].value == pytest.approx(5 / 7)  # happy birthday dear ann bob
    chinese = system("sft", [{}] * 2)
    assert metric_names([chinese])[0] == "length_chars" and label("distinct_1", chinese.language.unit) == "distinct-1, characters"
    with pytest.raises(UserError, match="is in en, 'sft' in zh"):
        check_systems([chinese, dataclasses.replace(chinese, name="rl", language=EN)])
    with pytest.raises(UserError, match="length_words"):
        chinese.values("length_words")
