"""Rewards by rule: what a request states, in its language, and how parts become one reward."""

import dataclasses
import json

import numpy as np
import pytest

from rlaif_jax.data import corpus
from rlaif_jax.errors import UserError
from rlaif_jax.language import EN, zh
from rlaif_jax.rewards import rules
from rlaif_jax.rewards.base import RewardResult, Sample, checked, joined, with_unfinished_penalty
from rlaif_jax.rewards.function import _from_plain, _to_plain, as_result
from rlaif_jax.trainers.rl import reward_metrics

FORMS = ("max_chars", "items", "start", "avoid", "chars", "four")  # constraints that the request spells out


def test_every_constraint_of_the_corpus_is_read_from_the_words_alone():
    made = corpus.generate(5, corpus.CorpusConfig(10, 3000, 20, 20, 20))
    seen, caught = dict.fromkeys(FORMS, 0), []
    for row in made.pairs:
        kind = row["meta"]["constraint"][0] if row["meta"]["constraint"] else None
        kept = rules.keeps_constraints(row["prompt"], row["chosen"])
        if kind is None:
            assert kept is None, row["prompt"]
        elif kind in FORMS:
            seen[kind] += 1
            assert kept == 1.0, (row["prompt"], row["chosen"])
            flaws = corpus.gold_flaws(corpus.Request.from_meta(row["meta"]), row["rejected"])
            if {"wrong_length", "wrong_count", "wrong_form"} & set(flaws):
                caught.append(rules.keeps_constraints(row["prompt"], row["rejected"]) == 0.0)
    assert min(seen.values()) > 20 and np.mean(caught) > 0.9


def test_bands():
    assert rules.length_band("愿" * 20, 10, 30) == 1.0 and rules.length_band("", 10, 30) == 0.0
    assert rules.length_band("愿" * 45, 10, 30) == pytest.approx(0.5) and rules.length_band("愿" * 90, 10, 30) == 0.0
    assert rules.distinct_share("万事如意万事如意") < 0.9 and rules.distinct_share("春风送暖入屠苏") == 1.0


def test_combination_weights_vetoes_and_masks():
    def model(samples):
        return RewardResult(np.arange(len(samples), dtype=np.float32), np.array([e.response != "nan" for e in samples]))

    items = [Sample("写三条", "一条"), Sample("写三条", "1.甲。2.乙。3.丙。"), Sample("写", "nan")]
    cfg = rules.RuleConfig(constraint_weight=0.5, veto_constraint=True, veto_penalty=3.0)
    result = rules.with_rules({"model": (model, 2.0)}, cfg)(items)
    assert result.values[:2].tolist() == [0.0 - 3.0, 2.0 + 0.5] and result.valid.tolist() == [True, True, False]
    assert set(result.components) == {"model", "constraint", "veto_constraint"}
    assert rules.with_rules({"model": (model, 1.0)}, rules.RuleConfig())(items).values[:2].tolist() == [0.0, 1.0]
    scaled = rules.with_rules({"model": (model, 1.0)}, rules.RuleConfig(normalise="batch"))([*items[:2], Sample("写", "x")]).values
    assert abs(scaled.mean()) < 1e-6 and scaled.std() == pytest.approx(1.0, abs=1e-3)


def test_rules_count_words_where_the_request_is_english():
    def model(samples):
        return RewardResult(np.zeros(len(samples), np.float32), np.ones(len(samples), bool))

    long = " ".join(["word"] * 50)
    assert rules.keeps_constraints("Wish her luck in at most 5 words.", long) == 0.0
    assert rules.keeps_constraints("Wish her luck in at most 5 words.", "Good luck, Ann!") == 1.0
    assert rules.keeps_constraints("Wish her luck.", long) is None
    assert rules.keeps_constraints("不超过5个字", "好好好好好好") == 0.0
    assert rules.keeps_constraints("at most 5 words", "好" * 50, "zh") is None  # the task's language rules
    assert rules.length_band("a b c d e", 3, 10, EN) == 1.0 and rules.length_band("a b c d e", 3, 10, zh.ZH) == 1.0
    assert rules.length_band("congratulations", 3, 10, EN) == 0.0 and rules.length_band("congratulations", 3, 15, zh.ZH) == 1.0
    assert rules.distinct_share("so good " * 4, language=EN) == pytest.approx(2 / 5)
    assert rules.distinct_share("a nice day for a nice walk", language=EN) == 1.0
    cfg = rules.RuleConfig(length_weight=1.0, length_min=2, length_max=4)
    reward = rules.with_rules({"model": (model, 1.0)}, cfg)
    values = reward([Sample("Wish her luck", "May all go well"), Sample("祝她好运", "一切都顺利吧")]).values
    assert values.tolist() == [1.0, 0.5]


def with_values(values, valid=None, applicable=None):
    """A reward with these results, for as many samples."""
    values = np.asarray(values, np.float32)
    valid = np.ones(len(values), bool) if valid is None else np.asarray(valid)
    return lambda samples: RewardResult(values, valid, applicable=None if applicable is None else np.asarray(applicable))


def test_a_rule_that_does_not_apply_is_left_out_of_its_row():
    requests = ["Wish her luck in at most 5 words.", "Wish her luck.", "不超过5个字", "写一条祝福"]
    samples = [Sample(request, " ".join(["word"] * 50)) for request in requests]
    cfg = rules.RuleConfig(constraint_weight=0.5, veto_constraint=True, veto_penalty=3.0)
    result = rules.with_rules({"model": (with_values([1.0, 2.0, 3.0, np.nan], [True, True, True, False]), 1.0)}, cfg)(samples)
    assert result.values.tolist() == [1.0 - 3.0, 2.0, 3.0 - 3.0, 0.0] and result.valid.tolist() == [True, True, True, False]
    assert result.applicable is None  # the model's reward applies to every row
    np.testing.assert_array_equal(result.components["constraint"], [0.0, np.nan, 0.0, np.nan])
    np.testing.assert_array_equal(result.components["veto_constraint"], [1.0, np.nan, 1.0, np.nan])


def test_a_sum_of_which_nothing_applies_does_not_apply():
    part = with_values([1.0, 5.0, 0.0], [True, False, True], [True, False, True])
    result = rules.combine({"rule": (part, 2.0)}, {}, 1.0, "none")(["a"] * 3)
    assert result.values.tolist() == [2.0, 0.0, 0.0] and result.applicable.tolist() == [True, False, True]
    assert result.valid.tolist() == [True, True, True] and result.invalid_share == 0.0
    usable = checked(result, 0.0)
    assert usable.valid.tolist() == [True, False, True] and checked(usable, 0.0).valid.tolist() == [True, False, True]
    metrics = reward_metrics(dataclasses.replace(usable, components=usable.components | {"none": np.full(3, np.nan, np.float32)}))
    assert metrics["reward"] == 1.0 and metrics["reward/rule"] == 0.5 and metrics["reward_invalid"] == 0.0
    assert "reward/none" not in metrics
    halves = joined([result.take(np.array([0])), result.take(np.array([1, 2]))])
    assert halves.applicable.tolist() == [True, False, True] and halves.values.tolist() == result.values.tolist()
    assert joined([with_values([1.0])([]), result]).applicable.tolist() == [True, True, False, True]


def test_invalid_rewards_are_counted_among_those_that_apply():
    result = RewardResult(np.array([1.0, np.nan, 2.0, np.nan], np.float32), np.array([True, True, False, True]),
                          applicable=np.array([True, True, True, False]))  # fmt: skip
    assert checked(result, 0.7).valid.tolist() == [True, False, False, False]
    assert checked(result, 0.7).invalid_share == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="67% of the rewards of a batch are invalid; the limit is 60%"):
        checked(result, 0.6)


@pytest.mark.parametrize("normalise", ["none", "batch"])
@pytest.mark.parametrize("seed", range(5))
def test_combination_is_the_plain_sum_over_what_applies(normalise, seed):
    rng, rows = np.random.default_rng(seed), 12
    names, weights = ("a", "b", "c"), (2.0, -0.5, 1.5)
    parts = {n: (rng.normal(size=rows), rng.random(rows) < 0.8, rng.random(rows) < 0.7) for n in (*names, "v", "w")}
    parts["c"] = (parts["c"][0], parts["c"][1], np.zeros(rows, bool))  # applies nowhere
    result = rules.combine(
        {n: (with_values(*parts[n]), w) for n, w in zip(names, weights, strict=True)}, {n: with_values(*parts[n]) for n in "vw"},
        3.0, normalise,
    )(["x"] * rows)  # fmt: skip
    for row in range(rows):
        total, valid, applies = 0.0, True, False
        for name, (values, known, applicable) in parts.items():
            if not applicable[row]:
                continue
            applies, valid = True, valid and known[row]
            if name in "vw":
                total -= 3.0 * (values[row] < 0.5)
                continue
            weight, value = weights[names.index(name)], values[row]
            if normalise == "batch":
                counted = values[known & applicable]
                value = (value - counted.mean()) / (counted.std() + 1e-6)
            total += weight * value * known[row]
            assert result.components[name][row] == pytest.approx(values[row] if known[row] else 0.0, rel=1e-5)
        assert result.applies[row] == applies
        if applies:
            assert result.valid[row] == valid and (not valid or result.values[row] == pytest.approx(total, abs=1e-5))
    assert np.isnan(result.components["c"]).all()


def test_the_penalty_for_unfinished_answers_keeps_the_parts_apart():
    inner = rules.with_rules({"model": (with_values([1.0, 2.0]), 0.5)}, rules.RuleConfig(repetition_weight=1.0))
    result = with_unfinished_penalty(inner, 0.25)([Sample("写", "甲乙丙丁"), Sample("写", "甲乙丙丁", finished=False)])
    assert result.values.tolist() == [1.5, 1.75] and result.components["model"].tolist() == [1.0, 2.0]
    assert result.components["unfinished"].tolist() == [0.0, -0.25]
    alone = with_unfinished_penalty(with_values([1.0, 2.0]), 0.25)([Sample("写", "甲")] * 2)
    assert set(alone.components) == {"unfinished"}


def test_a_users_function_may_say_that_it_does_not_apply():
    result = with_values([1.0, 2.0], applicable=[True, False])([])
    assert as_result(result, 2) is result
    again = _from_plain(json.loads(json.dumps(_to_plain(result))))
    assert again.applicable.tolist() == [True, False] and _from_plain(_to_plain(with_values([1.0])([]))).applicable is None
    with pytest.raises(ValueError, match=r"expected values, valid and applicable of 2 rows, found \(2,\), \(2,\), \(1,\)"):
        as_result(dataclasses.replace(result, applicable=np.ones(1, bool)), 2)
