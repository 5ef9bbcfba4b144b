"""Rewards by rule: what a request states, in its language, and how parts become one reward."""

import numpy as np
import pytest

from rlaif_jax.data import corpus
from rlaif_jax.language import EN, zh
from rlaif_jax.rewards import rules
from rlaif_jax.rewards.base import RewardResult, Sample

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


def test_numbers_and_bands():
    assert [zh.number(t) for t in ("16", "十", "十六", "二十", "二十五", "两", "八")] == [16, 10, 16, 20, 25, 2, 8]
    assert rules.length_band("愿" * 20, 10, 30) == 1.0 and rules.length_band("", 10, 30) == 0.0
    assert rules.length_band("愿" * 45, 10, 30) == pytest.approx(0.5) and rules.length_band("愿" * 90, 10, 30) == 0.0
    assert rules.distinct_share("万事如意万事如意") < 0.9 and rules.distinct_share("春风送暖入屠苏") == 1.0


def test_combination_weights_vetoes_and_masks():
    def model(samples):
        return RewardResult(np.arange(len(samples), dtype=np.float32), np.array([e.response != "nan" for e in samples]))

    items = [Sample("写三条", "一条"), Sample("写三条", "1.甲。2.乙。3.丙。"), Sample("写", "nan")]
    cfg = rules.RuleConfig(model_weight=2.0, constraint_weight=0.5, veto_constraint=True, veto_penalty=3.0)
    result = rules.with_rules(model, cfg)(items)
    assert result.values[:2].tolist() == [0.0 - 3.0, 2.0 + 0.5] and result.valid.tolist() == [True, True, False]
    assert set(result.components) == {"model", "constraint", "veto_constraint"}
    assert rules.with_rules(model, rules.RuleConfig()) is model
    scaled = rules.with_rules(model, rules.RuleConfig(normalise="batch"))([*items[:2], Sample("写", "x")]).values
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
    reward = rules.with_rules(model, cfg)
    values = reward([Sample("Wish her luck", "May all go well"), Sample("祝她好运", "一切都顺利吧")]).values
    assert values.tolist() == [1.0, 0.5]
