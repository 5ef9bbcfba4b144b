"""The policy objective against a NumPy twin that loops over tokens, finite differences, and what must never matter."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlaif_jax.algorithms.kl import KlConfig, adapted_coefficient, kl_terms
from rlaif_jax.algorithms.policy import PolicyConfig, correction_weights, policy_loss
from rlaif_jax.errors import UserError

RNG = np.random.default_rng(0)


def batch_of(rows=4, length=5):
    mask = (np.arange(length)[None] < RNG.integers(1, length + 1, rows)[:, None]).astype(np.float32)
    logp, old, ref, sampler, entropy = (RNG.normal(-2, 0.4, (rows, length)).astype(np.float32) for _ in range(5))
    advantages = RNG.normal(size=(rows, length)).astype(np.float32)
    beta = np.float32(0.1)
    batch = {"mask": mask, "old_logprobs": old, "ref_logprobs": ref, "sampler_logprobs": sampler, "advantages": advantages,
             "kl_coefficient": beta}  # fmt: skip
    return logp, np.abs(entropy), batch


def twin(logp, entropy, b, cfg, kl, frozen=None):
    """One token at a time, in float64. `frozen` (defaults to logp) is where quantities without gradient are taken."""
    frozen = logp if frozen is None else frozen
    rows = []
    for i in range(len(logp)):
        live = [t for t in range(logp.shape[1]) if b["mask"][i, t]]
        gaps = [frozen[i, t] - b["old_logprobs"][i, t] for t in live]
        row = []
        for t in live:
            a = b["advantages"][i, t]
            log_ratio = logp[i, t] - b["old_logprobs"][i, t]
            if cfg.importance_level == "sequence":
                log_ratio = sum(gaps) / len(gaps) + logp[i, t] - frozen[i, t]
            r = np.exp(log_ratio)
            held = min(max(r, 1 - cfg.clip_low), 1 + cfg.clip_high)
            if cfg.loss == "clip":
                term = max(-r * a, -held * a)
                if cfg.dual_clip and a < 0:
                    term = min(term, -cfg.dual_clip * a)
            elif cfg.loss == "cispo":
                at = np.exp(frozen[i, t] - b["old_logprobs"][i, t])
                term = -min(max(at, 1 - cfg.clip_low), 1 + cfg.clip_high) * a * logp[i, t]
            elif cfg.loss == "sapo":
                tau = 1.0 if a > 0 else 1.05
                term = -a * 4 / tau / (1 + np.exp(-tau * (r - 1)))
            else:
                term = -a * logp[i, t]
            if cfg.rollout_correction == "token_truncate":
                weight = np.exp(b["old_logprobs"][i, t] - b["sampler_logprobs"][i, t])
                term *= min(max(weight, cfg.rollout_correction_low), cfg.rollout_correction_high)
            d = logp[i, t] - b["ref_logprobs"][i, t]
            penalty = {"k1": d, "k2": d * d / 2, "k3": np.exp(-d) - 1 + d}[kl.estimator]
            row.append(term + 0.1 * penalty * (r if kl.unbiased else 1) - cfg.entropy_coefficient * entropy[i, t])
        rows.append(row)
    tokens = sum(map(len, rows))
    every = sum(map(sum, rows))
    return {
        "token_mean": every / tokens, "sequence_mean": np.mean([np.mean(r) for r in rows]), "sequence_sum": every / len(rows),
        "fixed_length": every / (len(rows) * logp.shape[1]),
    }[cfg.aggregation]  # fmt: skip


OPTIONS = [
    {"aggregation": a} for a in ("token_mean", "sequence_mean", "sequence_sum", "fixed_length")
] + [
    {"clip_low": 0.1, "clip_high": 0.4}, {"dual_clip": 1.3}, {"loss": "cispo"}, {"loss": "sapo"},
    {"loss": "reinforce"}, {"entropy_coefficient": 0.02}, {"rollout_correction": "token_truncate", "rollout_correction_high": 1.2},
    {"importance_level": "sequence", "aggregation": "sequence_mean", "clip_low": 0.05, "clip_high": 0.05},
]  # fmt: skip
KLS = [KlConfig(0.1), KlConfig(0.1, estimator="k2"), KlConfig(0.1, estimator="k1", unbiased=True), KlConfig(0.1, unbiased=True)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_value_and_gradient_equal_the_numpy_twin(options):
    cfg, kl = PolicyConfig(**options), KLS[OPTIONS.index(options) % len(KLS)]
    logp, entropy, batch = batch_of()
    value, grad = jax.value_and_grad(lambda x: policy_loss(x, entropy, cfg, kl, **batch)[0].value())(jnp.array(logp))
    exact = logp.astype(np.float64)
    np.testing.assert_allclose(value, twin(exact, entropy, batch, cfg, kl), rtol=2e-5, atol=1e-6)
    for i, t in np.ndindex(logp.shape):
        step = np.zeros_like(exact)
        step[i, t] = 1e-5
        slope = (twin(exact + step, entropy, batch, cfg, kl, exact) - twin(exact - step, entropy, batch, cfg, kl, exact)) / 2e-5
        np.testing.assert_allclose(grad[i, t], slope, atol=1e-4)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_padding_never_counts_and_gets_no_gradient(options):
    cfg, (logp, entropy, batch) = PolicyConfig(**options), batch_of()
    poisoned = {k: np.where(batch["mask"] > 0, v, 1e4) if v.ndim == 2 and k != "mask" else v for k, v in batch.items()}
    spoilt = np.where(batch["mask"] > 0, logp, -1e4).astype(np.float32)

    def loss(x, b):
        return policy_loss(x, entropy, cfg, KlConfig(0.1), **b)[0].value()

    assert float(loss(jnp.array(logp), batch)) == float(loss(jnp.array(spoilt), poisoned))
    grad = jax.grad(loss)(jnp.array(spoilt), poisoned)
    assert np.isfinite(grad).all() and not np.asarray(grad)[batch["mask"] == 0].any()


def test_identical_weights_give_ratio_one_no_kl_and_no_clip():
    logp, entropy, batch = batch_of()
    batch |= {"old_logprobs": logp, "ref_logprobs": logp, "sampler_logprobs": logp}
    _, found = policy_loss(jnp.array(logp), entropy, PolicyConfig(), KlConfig(), **batch)
    metrics = {k: float(m.value()) for k, m in found.items()}
    assert metrics["ratio"] == metrics["ratio_max"] == metrics["ratio_min"] == 1.0
    zero = ("kl", "approx_kl", "clip_ratio/low", "clip_ratio/high", "logprob_gap")
    assert [metrics[name] for name in zero] == [0.0] * len(zero)


def test_clips_are_counted_by_side():
    logp = jnp.array([[0.5, -0.5, 0.5, 0.1]])
    batch = {"mask": np.ones((1, 4), np.float32), "old_logprobs": np.zeros((1, 4), np.float32),
             "advantages": np.array([[1.0, -1.0, -1.0, 1.0]], np.float32)}  # fmt: skip
    metrics = policy_loss(logp, jnp.zeros((1, 4)), PolicyConfig(), KlConfig(0.0), **batch)[1]
    assert float(metrics["clip_ratio/high"].value()) == 0.25 and float(metrics["clip_ratio/low"].value()) == 0.25
    np.testing.assert_allclose(metrics["ratio_max"].value(), np.exp(0.5), rtol=1e-6)
    np.testing.assert_allclose(metrics["ratio_min"].value(), np.exp(-0.5), rtol=1e-6)


def test_k1_in_the_loss_has_no_gradient_on_average_and_is_refused():
    """E_p[grad k1] = 0 for samples of p; corrected by the ratio it is the gradient of KL(p || q)."""
    logits, ref = jnp.array([0.3, -0.2, 0.9, 0.0]), jax.nn.log_softmax(jnp.array([0.0, 0.5, -0.5, 0.2]))
    p = jax.nn.softmax(logits)

    def expected(x, corrected):  # the expectation over samples of the old policy p
        logp = jax.nn.log_softmax(x)
        ratio = jnp.exp(logp - jnp.log(p)) if corrected else 1.0
        return jnp.sum(p * ratio * kl_terms(logp, ref, "k1"))

    true = jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) * (jax.nn.log_softmax(x) - ref)))(logits)
    np.testing.assert_allclose(jax.grad(expected)(logits, False), np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(jax.grad(expected)(logits, True), true, atol=1e-6)
    with pytest.raises(UserError, match="gradient of zero"):
        KlConfig(0.1, estimator="k1")
    assert KlConfig(0.1, estimator="k1", place="reward").in_reward


def test_correction_weights_equal_their_numpy_twin():
    _, _, b = batch_of(6, 4)
    gap = (b["old_logprobs"] - b["sampler_logprobs"]) * b["mask"]
    for level, how in itertools.product(("token", "sequence"), ("truncate", "mask")):
        cfg = PolicyConfig(rollout_correction=f"{level}_{how}", rollout_correction_low=0.7, rollout_correction_high=1.4)
        weight = np.exp(gap if level == "token" else np.repeat(gap.sum(1, keepdims=True), 4, axis=1))
        inside = (weight >= 0.7) & (weight <= 1.4)
        expected = np.clip(weight, 0.7, 1.4) if how == "truncate" else np.where(inside, weight, 0)
        ours = correction_weights(b["old_logprobs"], b["sampler_logprobs"], b["mask"], cfg)
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_kl_estimators_and_controller():
    logp, ref = jnp.array([-1.0, -2.0]), jnp.array([-1.5, -1.0])
    np.testing.assert_allclose(kl_terms(logp, ref, "k1"), [0.5, -1.0])
    np.testing.assert_allclose(kl_terms(logp, ref, "k2"), [0.125, 0.5])
    np.testing.assert_allclose(kl_terms(logp, ref, "k3"), [np.exp(-0.5) - 1 + 0.5, np.e - 1 - 1], rtol=1e-6)
    cfg = KlConfig(0.1, target=0.5, horizon=100)
    np.testing.assert_allclose(adapted_coefficient(0.1, jnp.float32(5.0), 10, cfg), 0.1 * 1.02, rtol=1e-6)
    np.testing.assert_allclose(adapted_coefficient(0.1, jnp.float32(0.45), 10, cfg), 0.1 * 0.99, rtol=1e-6)
    assert adapted_coefficient(0.1, jnp.float32(5.0), 10, KlConfig(0.1)) == 0.1


@pytest.mark.parametrize("options, said", [
    ({"loss": "magic"}, "expected one of"), ({"dual_clip": 1.1}, "dual_clip"), ({"importance_level": "sequence"}, "sequence_mean"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        PolicyConfig(**options)


def test_the_gap_is_the_samplers_also_where_the_old_logprobs_are_the_trainers():
    logp, entropy, batch = batch_of()
    batch |= {"old_logprobs": logp, "sampler_logprobs": (logp - 0.3).astype(np.float32)}
    for how in ("none", "token_truncate"):
        _, found = policy_loss(jnp.array(logp), entropy, PolicyConfig(rollout_correction=how), KlConfig(), **batch)
        assert abs(float(found["logprob_gap"].value()) - 0.3) < 1e-5
