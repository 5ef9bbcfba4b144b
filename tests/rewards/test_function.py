"""A reward of the user's own: what it may return, what happens when it raises or hangs, and when its code is imported."""

import json
import time

import numpy as np
import pytest

from rlaif_jax.config import ArmConfig, FunctionConfig, RunConfig, from_dict, load_config, to_dict
from rlaif_jax.errors import UserError
from rlaif_jax.rewards.base import RewardResult, Sample
from rlaif_jax.rewards.function import as_result, function_reward, name_of, resolve

SAMPLES = [Sample("1+1?", "2", meta={"answer": "2"}), Sample("2+2?", "5", meta={"answer": "4"})]


def matches(samples):
    return [float(s.response == s.meta["answer"]) for s in samples]


def _reward(function, said=None, **settings):
    return function_reward(FunctionConfig(function, **settings), "mine", (said if said is not None else []).append)


def test_it_sees_the_samples_with_their_meta():
    result = _reward(matches)(SAMPLES)
    assert result.values.tolist() == [1.0, 0.0] and result.valid.all() and result.values.dtype == np.float32


@pytest.mark.parametrize(
    ("value", "values", "valid"),
    [([0.5, None], [0.5, 0.0], [True, False]), ((1, True), [1.0, 1.0], [True, True]),
     (np.array([0.1, np.nan]), [0.1, 0.0], [True, False]), ([float("inf"), -2], [0.0, -2.0], [False, True])],
)  # fmt: skip
def test_none_and_nan_are_invalid_and_never_zero(value, values, valid):
    result = as_result(value, 2)
    np.testing.assert_allclose(result.values, values, rtol=1e-6)
    assert result.valid.tolist() == valid


def test_a_result_of_its_own_is_taken_as_it_is():
    own = RewardResult(np.ones(2, np.float32), np.array([True, False]), {"rhyme": np.zeros(2)})
    assert as_result(own, 2) is own
    with pytest.raises(ValueError, match="of 3 rows"):
        as_result(own, 3)


@pytest.mark.parametrize(
    ("value", "problem"),
    [([1.0], "expected 2 values"), (3, "it returned int; expected a list"), (["good", "bad"], "a value that is no number")],
)
def test_a_wrong_result_is_invalid_and_reported_once(value, problem):
    said = []
    reward = _reward(lambda samples: value, said)
    for _ in range(2):
        assert not reward(SAMPLES).valid.any()
    assert len(said) == 1 and problem in said[0] and "invalid" in said[0]


def test_an_exception_is_invalid_with_the_first_traceback_or_stops_the_run():
    def broken(samples):
        return 1 / len([])

    said = []
    reward = _reward(broken, said)
    assert not reward(SAMPLES).valid.any() and not reward(SAMPLES).valid.any()
    assert len(said) == 1 and "ZeroDivisionError" in said[0] and "in broken" in said[0]
    with pytest.raises(UserError, match="'mine'.*ZeroDivisionError|ZeroDivisionError"):
        _reward(broken, on_error="raise")(SAMPLES)


def test_a_call_that_hangs_is_invalid_after_its_timeout():
    said = []
    reward = _reward(lambda samples: time.sleep(5) or [1, 1], said, timeout=0.1)
    began = time.perf_counter()
    assert not reward(SAMPLES).valid.any()
    assert time.perf_counter() - began < 2 and "no result within 0.1 s" in said[0]
    assert _reward(matches, timeout=5.0)(SAMPLES).values.tolist() == [1.0, 0.0]


def test_a_name_is_resolved_only_when_it_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text("def score(samples):\n    return [len(s.response) for s in samples]\n")
    monkeypatch.chdir(tmp_path)
    cfg = from_dict(RunConfig, {"reward": None, "arms": {"own": {"functions": {"length_of": "my_rewards.py:score"}}}})
    assert cfg.arms["own"].functions["length_of"] == FunctionConfig("my_rewards.py:score")
    assert to_dict(cfg)["arms"]["own"]["functions"]["length_of"]["function"] == "my_rewards.py:score"
    assert resolve("my_rewards.py:score")(SAMPLES) == [1, 1] and resolve("json:dumps") is json.dumps
    for name, problem in (("my_rewards.py:missing", "no function 'missing'"), ("nowhere.py:score", "does not exist"),
                          ("no_such_module:score", "cannot be imported")):  # fmt: skip
        with pytest.raises(UserError, match=problem):
            resolve(name)


def test_a_function_of_a_config_file_is_named_by_the_file(tmp_path):
    path = tmp_path / "poems.py"
    path.write_text(
        "from rlaif_jax.config import ArmConfig, RunConfig\n\n\ndef rhymes(samples):\n    return [1.0 for _ in samples]\n\n\n"
        "def config():\n    return RunConfig(reward=None, arms={'own': ArmConfig(functions={'rhymes': rhymes})})\n"
    )
    cfg = load_config(path)
    assert name_of(cfg.arms["own"].functions["rhymes"].function) == "poems.py:rhymes"
    assert to_dict(cfg)["arms"]["own"]["functions"]["rhymes"]["function"] == "poems.py:rhymes"
    changed = load_config(path, ["arms.own.functions.rhymes.weight=0.5"])
    assert changed.arms["own"].functions["rhymes"].weight == 0.5 and callable(changed.arms["own"].functions["rhymes"].function)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="expected a callable, module:name or file.py:name"):
        FunctionConfig("score")
    with pytest.raises(UserError, match="on_error is 'ignore'"):
        FunctionConfig(matches, on_error="ignore")
    with pytest.raises(UserError, match="names another reward"):
        ArmConfig(functions={"judge": matches})
    with pytest.raises(UserError, match="it has no reward"):
        ArmConfig()
    with pytest.raises(UserError, match="expected functions by name"):
        ArmConfig(functions=matches)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float32(1.0), "it returned float32; expected a list of 2 numbers or None"),
        (None, "it returned NoneType; expected a list"),
        ("ab", "it returned str; expected a list"),
        ({"a": 1.0, "b": 2.0}, "it returned dict; expected a list"),
        ([1.0, "good"], "it returned a value that is no number"),
        ([[1.0], [2.0, 3.0]], "it returned a value that is no number"),
        ([1.0], "expected 2 values, one for each sample, found 1"),
    ],
)
def test_a_result_of_another_kind_is_named(value, message):
    with pytest.raises(ValueError, match=message):
        as_result(value, 2)
