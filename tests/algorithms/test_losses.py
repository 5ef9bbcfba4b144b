"""Losses and advantages against independent NumPy formulas and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlaif_jax.algorithms import losses
from rlaif_jax.algorithms.advantages import group_advantages, groups_without_signal
from rlaif_jax.algorithms.grpo import GrpoConfig, grpo_loss

RNG = np.random.default_rng(0)


def _batch(rows=4, length=5):
    mask = (np.arange(length)[None] < RNG.integers(1, length + 1, rows)[:, None]).astype(np.float32)
    logp, old, ref = (RNG.normal(-2, 0.5, (rows, length)).astype(np.float32) for _ in range(3))
    advantages = RNG.normal(size=rows).astype(np.float32)
    return logp, {"mask": mask, "old_logprobs": old, "ref_logprobs": ref, "advantages": advantages}


def _numpy_grpo(logp, b, cfg):
    """Loops, one token at a time."""
    total, per_row, tokens = 0.0, [], 0
    for i in range(len(logp)):
        row = []
        for t in range(logp.shape[1]):
            if b["mask"][i, t]:
                r = np.exp(logp[i, t] - b["old_logprobs"][i, t])
                a = b["advantages"][i]
                clipped = min(max(r, 1 - cfg.clip_low), 1 + cfg.clip_high)
                d = b["ref_logprobs"][i, t] - logp[i, t]
                kl = {"k3": np.exp(d) - d - 1, "k2": d * d / 2}[cfg.kl_estimator]
                row.append(max(-r * a, -clipped * a) + cfg.kl_coefficient * kl)
        total, tokens = total + sum(row), tokens + len(row)
        per_row.append(np.mean(row))
    fixed = total / (len(logp) * logp.shape[1])
    return {"token_mean": total / tokens, "sequence_mean": np.mean(per_row), "fixed_length": fixed}[cfg.aggregation]


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "fixed_length"])
@pytest.mark.parametrize("kl", ["k2", "k3"])
def test_grpo_equals_its_numpy_twin(aggregation, kl):
    cfg = GrpoConfig(aggregation=aggregation, kl_estimator=kl, kl_coefficient=0.1, clip_low=0.2, clip_high=0.3)
    logp, batch = _batch()
    loss, _ = grpo_loss(jnp.array(logp), jnp.zeros_like(logp), batch, cfg)
    np.testing.assert_allclose(loss.value(), _numpy_grpo(logp.astype(np.float64), batch, cfg), rtol=1e-5)


def test_grpo_gradient_equals_finite_differences():
    cfg = GrpoConfig(kl_coefficient=0.1)
    logp, batch = _batch(3, 4)
    grad = jax.grad(lambda x: grpo_loss(x, jnp.zeros_like(x), batch, cfg)[0].value())(jnp.array(logp))
    for i, t in np.ndindex(logp.shape):
        up, down = logp.astype(np.float64).copy(), logp.astype(np.float64).copy()
        up[i, t] += 1e-4
        down[i, t] -= 1e-4
        slope = (_numpy_grpo(up, batch, cfg) - _numpy_grpo(down, batch, cfg)) / 2e-4
        np.testing.assert_allclose(grad[i, t], slope, atol=2e-3)


def test_identical_weights_give_ratio_one_and_no_kl():
    logp, batch = _batch()
    batch |= {"old_logprobs": logp, "ref_logprobs": logp}
    _, metrics = grpo_loss(jnp.array(logp), jnp.zeros_like(logp), batch, GrpoConfig())
    assert float(metrics["ratio"].value()) == 1.0
    assert float(metrics["kl"].value()) == 0.0 and float(metrics["clip_fraction"].value()) == 0.0


def test_padding_never_counts():
    logp, batch = _batch()
    poisoned = np.where(batch["mask"] > 0, logp, 1e4).astype(np.float32)
    clean, _ = grpo_loss(jnp.array(logp), jnp.zeros_like(logp), batch, GrpoConfig())
    dirty, _ = grpo_loss(jnp.array(poisoned), jnp.zeros_like(logp), batch, GrpoConfig())
    assert float(clean.value()) == float(dirty.value())


def test_advantages_equal_their_numpy_twin_and_keep_fractions():
    rewards = np.array([0.25, 0.5, 1.0, 0.75, 3.0, 3.0, 3.0, 3.0], np.float32)
    out = group_advantages(jnp.array(rewards), jnp.ones(8, bool), 4)
    first = rewards[:4]
    np.testing.assert_allclose(out[:4], (first - first.mean()) / (first.std(ddof=1) + 1e-4), rtol=1e-5)
    np.testing.assert_array_equal(out[4:], 0)
    np.testing.assert_allclose(group_advantages(rewards, jnp.ones(8, bool), 4, scale="none")[:4], first - first.mean())
    assert float(groups_without_signal(rewards, jnp.ones(8, bool), 4)) == 0.5


def test_no_verdict_changes_nothing_else():
    rewards = jnp.array([1.0, 2.0, np.nan, 4.0])
    valid = jnp.array([True, True, False, True])
    out = np.asarray(group_advantages(rewards, valid, 4))
    known = np.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(out[[0, 1, 3]], (known - known.mean()) / (known.std(ddof=1) + 1e-4), rtol=1e-5)
    assert out[2] == 0.0
    alone = group_advantages(rewards, jnp.array([True, False, False, False]), 4)
    np.testing.assert_array_equal(alone, 0)


def test_bradley_terry_and_cross_entropy_equal_their_twins():
    chosen, rejected, margin = (RNG.normal(size=6).astype(np.float32) for _ in range(3))
    weight = np.array([1, 1, 0, 1, 1, 0], np.float32)
    loss, metrics = losses.bradley_terry(chosen, rejected, margin, weight, centring=0.01)
    terms = -np.log(1 / (1 + np.exp(-(chosen - rejected - margin)))) + 0.01 * (chosen + rejected) ** 2
    np.testing.assert_allclose(loss.value(), terms[weight > 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"].value(), (chosen > rejected)[weight > 0].mean())
    label = np.array([0, 1, 1, 0, 1, 0], np.float32)
    p = 1 / (1 + np.exp(-chosen))
    entropy = -(label * np.log(p) + (1 - label) * np.log(1 - p))
    loss, _ = losses.binary_cross_entropy(chosen, label, weight)
    np.testing.assert_allclose(loss.value(), entropy[weight > 0].mean(), rtol=1e-5)


def test_kl_estimators():
    logp, ref = jnp.array([-1.0, -2.0]), jnp.array([-1.5, -1.0])
    np.testing.assert_allclose(losses.kl_terms(logp, ref, "k1"), [0.5, -1.0])
    np.testing.assert_allclose(losses.kl_terms(logp, ref, "k3"), [np.exp(-0.5) - 1 + 0.5, np.e - 1 - 1], rtol=1e-6)
