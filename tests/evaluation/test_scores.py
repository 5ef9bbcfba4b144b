"""Intervals against published or hand-computed numbers."""

import math

import numpy as np
import pytest

from rlaif_jax.evaluation import scores


def test_wilson_known_values():
    low, high = scores.wilson(8, 10)  # e.g. Agresti & Coull's table: (0.490, 0.943)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    low, high = scores.wilson(0, 10)
    assert low == 0 and high == pytest.approx(3.8415 / 13.8415, abs=1e-4)
    assert scores.wilson(10, 10)[1] == 1
    for bad in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="Wilson"):
            scores.wilson(*bad)


def test_bootstrap_interval_is_that_of_the_normal_theory():
    values = np.random.default_rng(0).normal(5, 2, 400)
    figure = scores.mean_figure(values.tolist(), seed=1)
    half = 1.96 * values.std() / math.sqrt(400)
    assert figure.value == pytest.approx(values.mean())
    assert figure.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert figure.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_bootstrap_is_seeded_and_chunks_do_not_lose_resamples(monkeypatch):
    values = np.arange(10.0)
    assert np.array_equal(scores.bootstrap_means(values, 4), scores.bootstrap_means(values, 4))
    assert not np.array_equal(scores.bootstrap_means(values, 4), scores.bootstrap_means(values, 5))
    monkeypatch.setattr(scores, "_CHUNK", 70)
    assert scores.bootstrap_means(values, 4, 100).shape == (100,)


def test_missing_is_not_zero():
    figure = scores.rate_figure([1, None, 1, 0, None])
    assert (figure.value, figure.n, figure.missing) == (pytest.approx(2 / 3), 3, 2)
    nothing = scores.mean_figure([None, None])
    assert nothing == scores.Figure(None, None, None, 0, 2)
    assert scores.mean_figure([3.0]) == scores.Figure(3.0, None, None, 1, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_raises(bad):
    with pytest.raises(ValueError, match="value 1"):
        scores.mean_figure([1.0, bad])
    with pytest.raises(ValueError, match="low"):
        scores.Figure(1.0, bad, 2.0, 3)


def test_jackknife_of_a_mean_is_the_standard_error():
    values = np.array([0.1, 0.4, 0.2, 0.7, 0.6])
    left_out = (values.sum() - values) / 4
    figure = scores.jackknife_figure(float(values.mean()), left_out)
    half = scores.Z95 * values.std(ddof=1) / math.sqrt(5)
    assert figure.high - figure.value == pytest.approx(half)


def test_is_binary():
    assert scores.is_binary([0.0, None, 1.0])
    assert not scores.is_binary([0.0, 0.5])
    assert not scores.is_binary([None])
