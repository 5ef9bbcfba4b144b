"""Advantages from rewards: group baselines, whitening, and GAE with a critic. All float32.

A row with an invalid reward has `valid` False. It is left out of every mean, and its advantage is 0.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from rlaif_jax.algorithms.masked import masked_mean, masked_var, whiten
from rlaif_jax.errors import UserError
from rlaif_jax.ranges import Range, Share, check_fields


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
    """Advantages without a critic. The defaults are GRPO's (arXiv 2402.03300).

    Attributes:
      baseline: what is subtracted from a reward. "group_mean": the mean of the group. "leave_one_out": the mean of the group's
        other samples (RLOO, arXiv 2402.14740). "none": nothing; the advantage of a token is the discounted sum of the rewards from
        it on (REINFORCE++, arXiv 2501.03262; use it with whiten = "tokens" and the KL in the reward).
      scale: what the difference is divided by: "group" (the group's standard deviation), "batch" (that of all rewards), or "none".
        Division by the group's favours prompts that are almost solved or almost hopeless (Dr. GRPO, arXiv 2503.20783).
      whiten: "tokens" or "rows" normalises the advantages to zero mean and unit variance over all valid tokens or rows of the
        batch; "none" does not.
      gamma: discount per token; only used with baseline "none".
      epsilon: added to a standard deviation before dividing by it (TRL has 1e-4, too; verl 1e-6).
    """

    baseline: str = "group_mean"
    scale: str = "group"
    whiten: str = "none"
    gamma: Share = 1.0
    epsilon: Annotated[float, Range(0, 1)] = 1e-4

    def __post_init__(self):
        check_fields(self)
        allowed = {
            "baseline": ("group_mean", "leave_one_out", "none"),
            "scale": ("group", "batch", "none"),
            "whiten": ("none", "tokens", "rows"),
        }
        for field, values in allowed.items():
            if getattr(self, field) not in values:
                raise UserError(f"advantage.{field} is {getattr(self, field)!r}; expected one of {', '.join(values)}")


def group_advantages(
    rewards: jax.Array, valid: jax.Array, group: int, cfg: AdvantageConfig = AdvantageConfig()
) -> jax.Array:
    """Advantages (B,) from rewards (B,), without whitening. The `group` samples of a prompt must be adjacent.

    Standard deviations have ddof 1. A group with fewer than two valid rewards gets 0.
    """
    r = jnp.where(valid, rewards.astype(jnp.float32), 0.0).reshape(-1, group)
    ok = valid.reshape(-1, group)
    count = jnp.sum(ok, axis=1, keepdims=True)
    mean = jnp.sum(r, axis=1, keepdims=True) / jnp.maximum(count, 1)
    centred = jnp.where(ok & (count > 1), r - mean, 0.0)
    # r - (sum - r) / (n - 1) = (r - mean) * n / (n - 1)
    out = centred * count / jnp.maximum(count - 1, 1) if cfg.baseline == "leave_one_out" else centred
    if cfg.scale == "group":
        std = jnp.sqrt(jnp.sum(centred**2, axis=1, keepdims=True) / jnp.maximum(count - 1, 1))
        out = out / (std + cfg.epsilon)
    elif cfg.scale == "batch":
        out = out / (jnp.sqrt(masked_var(r, ok.astype(jnp.float32))) + cfg.epsilon)
    return out.reshape(-1)


def advantages(
    rewards: jax.Array, valid: jax.Array, kl_penalty: jax.Array, mask: jax.Array, group: int, cfg: AdvantageConfig
) -> jax.Array:
    """Advantages (B, R) without a critic, from rewards, valid (B,) and kl_penalty, mask (B, R). The penalty is subtracted."""
    rows = valid.astype(jnp.float32)
    if cfg.baseline == "none":
        per_token = returns_to_go(token_rewards(rewards, kl_penalty, mask), mask, cfg.gamma)
    else:
        total = rewards - jnp.sum(kl_penalty * mask, axis=1)
        own = group_advantages(total, valid, group, cfg)
        if cfg.whiten == "rows":
            centred = own - masked_mean(own, rows)
            own = jnp.where(valid, centred / (jnp.sqrt(masked_var(own, rows)) + cfg.epsilon), 0.0)
        per_token = own[:, None] * mask
    return whiten(per_token, mask) if cfg.whiten == "tokens" else per_token


def token_rewards(scores: jax.Array, kl_penalty: jax.Array, mask: jax.Array) -> jax.Array:
    """(B, R): minus the KL penalty on each token, plus the score (B,) on the last valid token (EOS if the response ended)."""
    last = jnp.sum(mask, axis=1).astype(jnp.int32) - 1  # -1 for an empty row, which matches no token
    at_end = (jnp.arange(mask.shape[1])[None] == last[:, None]).astype(jnp.float32)
    return (scores[:, None] * at_end - kl_penalty) * mask


def gae(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, gamma: float, lam: float
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimates and returns = advantages + values, (B, R) (arXiv 1506.02438, eq. 16).

    rewards, values, mask (B, R). Masked tokens are skipped; the value after the last token is 0.
    """

    def step(carry, column):
        next_value, next_advantage = carry
        reward, value, m = column
        advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        carry = jnp.where(m > 0, value, next_value), jnp.where(m > 0, advantage, next_advantage)
        return carry, jnp.where(m > 0, advantage, 0.0)

    zeros = jnp.zeros(rewards.shape[0], jnp.float32)
    _, columns = jax.lax.scan(step, (zeros, zeros), (rewards.T, values.T, mask.T), reverse=True)
    found = columns.T
    return found, (found + values) * mask


def returns_to_go(rewards: jax.Array, mask: jax.Array, gamma: float) -> jax.Array:
    """(B, R): the discounted sum of the rewards from each token on. This is GAE with lambda 1 and all values 0."""
    return gae(rewards, jnp.zeros_like(rewards), mask, gamma, 1.0)[0]


def groups_with_signal(rewards: jax.Array, valid: jax.Array, group: int) -> jax.Array:
    """(P,) bool: whether a group has two different valid rewards. Without them all its advantages are 0."""
    r, ok = rewards.reshape(-1, group), valid.reshape(-1, group)
    low = jnp.min(jnp.where(ok, r, jnp.inf), axis=1)
    high = jnp.max(jnp.where(ok, r, -jnp.inf), axis=1)
    return high > low


def overlong_penalty(lengths: jax.Array, max_tokens: int, buffer: int) -> jax.Array:
    """(B,) in [0, 1]: 0 up to max_tokens - buffer tokens, then rising linearly to 1 at max_tokens.

    This is minus the soft length penalty of DAPO (arXiv 2503.14476, eq. 13).
    """
    return jnp.clip((lengths - (max_tokens - buffer)) / buffer, 0.0, 1.0)
