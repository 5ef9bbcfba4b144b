"""Diversity figures on texts small enough to count by hand."""

import numpy as np
import pytest

from rlaif_jax.evaluation import diversity
from rlaif_jax.language import EN, ZH


def test_ngrams_skip_white_space():
    assert ZH.ngrams("新 年\n好", 2) == ["新年", "年好"]
    assert ZH.ngrams("好", 2) == []
    with pytest.raises(ValueError, match="n >= 1"):
        ZH.ngrams("好", 0)


def test_distinct_by_hand():
    texts = ["新年好", "新年快乐"]  # 7 characters, 5 kinds; bigrams 新年 年好 新年 年快 快乐: 4 kinds of 5
    assert diversity.distinct_n(texts, 1) == pytest.approx(5 / 7)
    assert diversity.distinct_n(texts, 2) == pytest.approx(4 / 5)
    assert diversity.distinct_n(["好", ""], 2) is None


def test_jackknife_leaves_each_text_out():
    texts = ["新年好", "新年快乐", "中秋快乐", "好", ""]
    figure = diversity.distinct_figure(texts, 2)
    left = [diversity.distinct_n(texts[:i] + texts[i + 1 :], 2) for i in range(len(texts))]
    half = 1.959964 * np.sqrt(4 / 5 * np.sum((np.array(left) - np.mean(left)) ** 2))
    assert figure.high == pytest.approx(min(1.0, figure.value + half))
    assert figure.low == pytest.approx(figure.value - half)
    assert figure.n == 5


def test_a_single_text_has_no_interval():
    assert diversity.distinct_figure(["新年好"], 1).low is None


def test_unique_and_repetition():
    assert diversity.unique_figure(["好", "好 ", "乐"]).value == pytest.approx(2 / 3)
    assert diversity.repeats_itself("万事如意，万事如意")
    assert not diversity.repeats_itself("万事如意，万事胜意")
    assert diversity.self_repetition_figure(["万事如意万事如意", "新年好"]).value == 0.5


def test_english_is_counted_in_words():
    texts = ["Happy new year", "Happy new home"]  # 6 words, 4 kinds; bigrams: 3 kinds of 4
    assert diversity.distinct_n(texts, 1) == pytest.approx(4 / 6)
    assert diversity.distinct_n(texts, 2) == pytest.approx(3 / 4)
    assert diversity.distinct_n(texts, 1, ZH) == pytest.approx(len(set("".join(texts)) - {" "}) / 24)
    assert diversity.repeats_itself("All the best to you and all the best to Ann")
    assert not diversity.repeats_itself("All the best to you, all good to Ann")
    assert diversity.repeats_itself("congratulations, congratulations", language=ZH)
    assert diversity.self_repetition_figure(["congratulations, congratulations"], language=EN).value == 0.0
