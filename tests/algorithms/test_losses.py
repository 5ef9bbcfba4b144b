"""Losses of reward models, preferences and critics, and aggregation, against independent formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlaif_jax.algorithms import losses
from rlaif_jax.algorithms.masked import explained_variance, masked_mean, masked_var, whiten

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def finite_difference(fn, x, step=1e-3):
    out = np.zeros_like(x, np.float64)
    for i in np.ndindex(x.shape):
        up, down = x.astype(np.float64).copy(), x.astype(np.float64).copy()
        up[i] += step
        down[i] -= step
        out[i] = (fn(up) - fn(down)) / (2 * step)
    return out


def test_bradley_terry_and_cross_entropy_equal_their_twins():
    chosen, rejected, margin = (normal(6) for _ in range(3))
    weight = np.array([1, 1, 0, 1, 1, 0], np.float32)
    loss, metrics = losses.bradley_terry(chosen, rejected, margin, weight, centring=0.01)

    def bt(c):
        return (-np.log(1 / (1 + np.exp(-(c - rejected - margin)))) + 0.01 * (c + rejected) ** 2)[weight > 0].mean()

    np.testing.assert_allclose(loss.value(), bt(chosen), rtol=1e-5)
    grad = jax.grad(lambda c: losses.bradley_terry(c, rejected, margin, weight, 0.01)[0].value())(chosen)
    np.testing.assert_allclose(grad, finite_difference(bt, chosen), atol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"].value(), (chosen > rejected)[weight > 0].mean())
    label = np.array([0, 1, 1, 0, 1, 0], np.float32)

    def bce(s):
        p = 1 / (1 + np.exp(-s))
        return -(label * np.log(p) + (1 - label) * np.log(1 - p))[weight > 0].mean()

    loss, _ = losses.binary_cross_entropy(chosen, label, weight)
    np.testing.assert_allclose(loss.value(), bce(chosen), rtol=1e-5)
    grad = jax.grad(lambda s: losses.binary_cross_entropy(s, label, weight)[0].value())(chosen)
    np.testing.assert_allclose(grad, finite_difference(bce, chosen), atol=1e-4)


@pytest.mark.parametrize("kind, smoothing", [("sigmoid", 0.0), ("sigmoid", 0.1), ("ipo", 0.0)])
def test_preference_losses_equal_their_twins(kind, smoothing):
    chosen, rejected, ref_chosen, ref_rejected = (normal(5) for _ in range(4))
    weight, beta = np.array([1, 1, 1, 0, 1], np.float32), 0.3

    def twin(c):
        h = (c - ref_chosen) - (rejected - ref_rejected)
        if kind == "ipo":
            return ((h - 1 / (2 * beta)) ** 2)[weight > 0].mean()
        right, wrong = (1 / (1 + np.exp(-s * beta * h)) for s in (1, -1))
        return -((1 - smoothing) * np.log(right) + smoothing * np.log(wrong))[weight > 0].mean()

    def ours(c):
        return losses.preference(c, rejected, ref_chosen, ref_rejected, weight, beta=beta, kind=kind, smoothing=smoothing)

    np.testing.assert_allclose(ours(chosen)[0].value(), twin(chosen), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda c: ours(c)[0].value())(chosen), finite_difference(twin, chosen), atol=1e-4)
    same = losses.preference(chosen, rejected, chosen, rejected, weight, beta=beta)[0].value()
    np.testing.assert_allclose(same, np.log(2), rtol=1e-6)


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_value_loss_equals_its_twin(clip):
    values, old, returns = (normal(3, 4) for _ in range(3))
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], np.float32)

    def twin(v):
        found = []
        for i, t in np.argwhere(mask > 0):
            errors = [(v[i, t] - returns[i, t]) ** 2]
            if clip:
                errors.append((min(max(v[i, t], old[i, t] - clip), old[i, t] + clip) - returns[i, t]) ** 2)
            found.append(max(errors) / 2)
        return np.mean(found)

    loss, _ = losses.value_loss(values, old, returns, mask, clip)
    np.testing.assert_allclose(loss.value(), twin(values), rtol=1e-5)
    grad = jax.grad(lambda v: losses.value_loss(v, old, returns, mask, clip)[0].value())(values)
    np.testing.assert_allclose(grad, finite_difference(twin, values, 1e-5), atol=1e-4)


def test_masked_statistics_are_those_of_the_valid_part():
    x, mask = normal(4, 5), (RNG.random((4, 5)) < 0.6).astype(np.float32)
    valid = x[mask > 0]
    spoilt = np.where(mask > 0, x, 1e6).astype(np.float32)
    np.testing.assert_allclose(masked_mean(spoilt, mask), valid.mean(), rtol=1e-5)
    np.testing.assert_allclose(masked_var(spoilt, mask), valid.var(ddof=1), rtol=1e-5)
    white = np.asarray(whiten(spoilt, mask))
    np.testing.assert_allclose(white[mask > 0], (valid - valid.mean()) / np.sqrt(valid.var(ddof=1) + 1e-8), rtol=1e-4, atol=1e-6)
    assert not white[mask == 0].any()
    none = np.zeros_like(mask)
    assert float(masked_mean(x, none)) == float(masked_var(x, none)) == 0 and not np.asarray(whiten(x, none)).any()
    np.testing.assert_allclose(explained_variance(jnp.array(x), jnp.array(x), mask), 1.0)
    flat = jnp.full((4, 5), 3.0)
    np.testing.assert_allclose(explained_variance(flat, jnp.array(x), mask), 0.0, atol=1e-5)


@pytest.mark.parametrize("how", ["token_mean", "sequence_mean", "sequence_sum", "fixed_length"])
def test_parts_of_a_batch_add_up_exactly(how):
    """Micro-batches of any size give the mean of the whole: sums and weights are added, the division comes last."""
    terms, mask = normal(8, 5), (np.arange(5)[None] < RNG.integers(0, 6, 8)[:, None]).astype(np.float32)
    whole = losses.aggregate(terms, mask, how, 5)
    for size in (1, 2, 4):
        parts = [losses.aggregate(terms[i : i + size], mask[i : i + size], how, 5) for i in range(0, 8, size)]
        total, weight = sum(p.total for p in parts), sum(p.weight for p in parts)
        np.testing.assert_allclose(total / weight, whole.value(), rtol=1e-5)
