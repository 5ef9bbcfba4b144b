"""Advantages against NumPy twins: groups, whitening, GAE, shaping; rows without a verdict."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlaif_jax.algorithms.advantages import (
    AdvantageConfig,
    advantages,
    gae,
    group_advantages,
    groups_with_signal,
    overlong_penalty,
    returns_to_go,
    token_rewards,
)
from rlaif_jax.errors import UserError

RNG = np.random.default_rng(1)
REWARDS = np.array([0.25, 0.5, 1.0, 0.75, 3.0, 3.0, 3.0, 3.0], np.float32)
ALL = np.ones(8, bool)


def masks(rows, length):
    return (np.arange(length)[None] < RNG.integers(1, length + 1, rows)[:, None]).astype(np.float32)


def test_group_advantages_equal_their_twins_and_keep_fractions():
    first = REWARDS[:4]
    centred = first - first.mean()
    out = np.asarray(group_advantages(REWARDS, ALL, 4))
    np.testing.assert_allclose(out[:4], centred / (first.std(ddof=1) + 1e-4), rtol=1e-5)
    np.testing.assert_array_equal(out[4:], 0)
    plain = group_advantages(REWARDS, ALL, 4, AdvantageConfig(scale="none"))
    np.testing.assert_allclose(plain[:4], centred, rtol=1e-6)
    by_batch = group_advantages(REWARDS, ALL, 4, AdvantageConfig(scale="batch"))
    np.testing.assert_allclose(by_batch[:4], centred / (REWARDS.std(ddof=1) + 1e-4), rtol=1e-5)
    others = [np.delete(first, i).mean() for i in range(4)]
    loo = group_advantages(REWARDS, ALL, 4, AdvantageConfig("leave_one_out", "none"))
    np.testing.assert_allclose(loo[:4], first - others, rtol=1e-5)
    np.testing.assert_array_equal(groups_with_signal(REWARDS, ALL, 4), [True, False])


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
def test_no_verdict_changes_nothing_else(baseline):
    """A group of four with one verdict missing is a group of three; what was computed for other groups stays."""
    rewards, valid = REWARDS.copy(), ALL.copy()
    rewards[2], valid[2] = np.nan, False
    cfg = AdvantageConfig(baseline, "group" if baseline == "group_mean" else "none")
    out = np.asarray(group_advantages(jnp.array(rewards), valid, 4, cfg))
    three = np.asarray(group_advantages(REWARDS[[0, 1, 3]], ALL[:3], 3, cfg))
    np.testing.assert_allclose(out[[0, 1, 3]], three, rtol=1e-6)
    assert out[2] == 0.0
    np.testing.assert_array_equal(out[4:], np.asarray(group_advantages(REWARDS, ALL, 4, cfg))[4:])
    alone = group_advantages(jnp.array(rewards), np.arange(8) == 0, 4, cfg)
    np.testing.assert_array_equal(alone, 0)


def test_gae_equals_a_loop():
    mask, rewards, values = masks(5, 6), RNG.normal(size=(5, 6)), RNG.normal(size=(5, 6))
    gamma, lam = 0.9, 0.8
    expected = np.zeros((5, 6))
    for i in range(5):
        length, after, follow = int(mask[i].sum()), 0.0, 0.0
        for t in reversed(range(length)):
            delta = rewards[i, t] + gamma * after - values[i, t]
            follow = delta + gamma * lam * follow
            expected[i, t], after = follow, values[i, t]
    found, returns = gae(jnp.array(rewards, jnp.float32), jnp.array(values, jnp.float32), mask, gamma, lam)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(returns, (expected + values) * mask, rtol=1e-5, atol=1e-6)


def test_masked_tokens_in_between_are_irrelevant():
    """A multi-turn response: what stands at a masked place changes nothing, and is stepped over."""
    rewards, values = RNG.normal(size=(2, 1, 6)).astype(np.float32)
    mask = np.array([[1, 1, 0, 0, 1, 1]], np.float32)
    spoilt = np.where(mask > 0, values, 1e5).astype(np.float32)
    clean, dirty = (np.asarray(gae(rewards, v, mask, 0.9, 0.9)[0]) for v in (values, spoilt))
    np.testing.assert_array_equal(clean, dirty)
    short = np.asarray(gae(rewards[:, [0, 1, 4, 5]], values[:, [0, 1, 4, 5]], np.ones((1, 4), np.float32), 0.9, 0.9)[0])
    np.testing.assert_allclose(clean[:, [0, 1, 4, 5]], short, rtol=1e-6)


def test_the_score_stands_on_the_last_token_and_an_empty_row_gets_none():
    mask = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], np.float32)
    kl = np.full((3, 3), 0.5, np.float32)
    out = token_rewards(jnp.array([0.3, 2.0, 9.0]), kl, mask)
    np.testing.assert_allclose(out, [[-0.5, -0.5, -0.2], [1.5, 0, 0], [0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(returns_to_go(out, mask, 1.0)[0], [-1.2, -0.7, -0.2], atol=1e-6)
    np.testing.assert_allclose(returns_to_go(out, mask, 0.5)[0], [-0.8, -0.6, -0.2], atol=1e-6)


def test_whitening_is_over_valid_tokens_or_rows():
    mask, rewards = masks(8, 4), RNG.normal(size=8).astype(np.float32)
    zero = np.zeros_like(mask)
    tokens = np.asarray(advantages(rewards, ALL, zero, mask, 4, AdvantageConfig(scale="none", whiten="tokens")))
    assert abs(tokens[mask > 0].mean()) < 1e-5 and abs(tokens[mask > 0].std(ddof=1) - 1) < 1e-4
    rows = np.asarray(advantages(rewards, ALL, zero, mask, 4, AdvantageConfig(scale="none", whiten="rows")))[:, 0]
    assert abs(rows.mean()) < 1e-5 and abs(rows.std(ddof=1) - 1) < 1e-3
    plain = np.asarray(advantages(rewards, ALL, zero, mask, 1, AdvantageConfig("none", "none")))
    np.testing.assert_allclose(plain, rewards[:, None] * mask, rtol=1e-6)  # gamma 1: every token has the whole score


def test_kl_in_the_reward_is_taken_off_whole_responses_in_groups():
    mask = masks(4, 3)
    kl, rewards = RNG.random((4, 3)).astype(np.float32) * mask, RNG.normal(size=4).astype(np.float32)
    cfg = AdvantageConfig("leave_one_out", "none")
    out = advantages(rewards, ALL[:4], kl, mask, 2, cfg)
    total = rewards - kl.sum(1)
    np.testing.assert_allclose(out[:, 0], total - total.reshape(2, 2)[:, ::-1].reshape(-1), rtol=1e-5)


def test_overlong_penalty_rises_over_the_buffer():
    np.testing.assert_allclose(overlong_penalty(jnp.array([3, 6, 8, 10]), 10, 4), [0, 0, 0.5, 1.0])


@pytest.mark.parametrize("field", ["baseline", "scale", "whiten"])
def test_unknown_options_are_refused(field):
    with pytest.raises(UserError, match="expected one of"):
        AdvantageConfig(**{field: "magic"})
