"""One step of reinforcement learning from AI feedback, GRPO's family or PPO:

    prompts --sampler--> Rollout --annotate--> log-probs, values --experience--> advantages --learn--> new state
                             `--reward--> RewardResult --------------'
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlaif_jax.algorithms import advantages as adv
from rlaif_jax.algorithms import losses
from rlaif_jax.algorithms.kl import adapted_coefficient, kl_terms
from rlaif_jax.algorithms.masked import explained_variance, masked_mean, whiten
from rlaif_jax.algorithms.mean import Mean, Metrics
from rlaif_jax.algorithms.policy import policy_loss
from rlaif_jax.models import heads, transformer
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.rewards.base import RewardResult, Sample, checked
from rlaif_jax.sampling.decode import Decoded
from rlaif_jax.sampling.filters import SamplingParams
from rlaif_jax.sampling.sampler import sequences
from rlaif_jax.sharding.placement import Placement
from rlaif_jax.trainers.config import RlConfig
from rlaif_jax.trainers.rollout import Rollout, RolloutFn
from rlaif_jax.trainers.update import TrainState


@chex.dataclass(frozen=True)
class RlState(TrainState):
    """The policy's state and whatever else an RL step changes; all of it is in one checkpoint.

    Attributes:
      critic: the critic's state, or None; its own `frozen` is None, see `critic_base`.
      reference: the reference's weights where they are refreshed; None where they are SFT's for good.
      kl_coefficient: () float32, adaptive or not.
      reward_stats: (3,) float32: count, mean and sum of squared deviations of all rewards so far.
    """

    critic: TrainState | None
    reference: Any
    kl_coefficient: jax.Array
    reward_stats: jax.Array


def response_logprobs(
    params: Any, cfg: ModelConfig, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array, length: int,
    temperature: jax.Array, place: Placement | None = None,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """log-probs and entropy (B, R) of the last `length` tokens of each row; only their logits are computed."""
    hidden = transformer.forward(params, cfg, tokens, segment_ids, positions, place)
    return transformer.logprobs(params, cfg, hidden[:, -length - 1 : -1], tokens[:, -length:], temperature)


def response_values(
    params: Any, cfg: ModelConfig, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array, length: int,
    place: Placement | None = None,
) -> jax.Array:  # fmt: skip
    """Values (B, R) of the states in which each of the last `length` tokens was chosen."""
    return heads.values(params, cfg, tokens, segment_ids, positions, place)[:, -length - 1 : -1]


def rl_loss(
    params: Any, batch: dict[str, jax.Array], cfg: ModelConfig, rl: RlConfig, place: Placement | None = None
) -> tuple[Mean, Metrics]:
    """The policy's loss on tokens, segment_ids, positions (B, Tp + R), temperature (B,) and what `policy_loss` reads."""
    logp, entropy = response_logprobs(
        params, cfg, batch["tokens"], batch["segment_ids"], batch["positions"], batch["mask"].shape[1],
        batch["temperature"][0], place,
    )  # fmt: skip
    return policy_loss(logp, entropy, batch, rl.policy, rl.kl)


def critic_loss(
    params: Any, batch: dict[str, jax.Array], cfg: ModelConfig, rl: RlConfig, place: Placement | None = None
) -> tuple[Mean, Metrics]:
    """The critic's loss on tokens, segment_ids, positions (B, Tp + R) and mask, values, returns (B, R)."""
    values = response_values(params, cfg, batch["tokens"], batch["segment_ids"], batch["positions"], batch["mask"].shape[1], place)
    return losses.value_loss(values, batch["values"], batch["returns"], batch["mask"], rl.critic.value_clip)


def make_annotate(cfg: ModelConfig, rl: RlConfig, place: Placement) -> Callable[..., dict]:
    """Jitted: a rollout -> the part of the batch that needs no reward: log-probs of old policy and reference, values."""

    @jax.jit
    def annotate(params, reference, critic, prompts, segment_ids, decoded: Decoded, temperature):
        seq = sequences(prompts, segment_ids, decoded, rl.group)
        inputs = seq.tokens, seq.segment_ids, seq.positions, decoded.mask.shape[1]
        part = {
            "tokens": seq.tokens, "segment_ids": seq.segment_ids, "positions": seq.positions,
            "old_logprobs": decoded.logprobs, "temperature": jnp.full(decoded.mask.shape[:1], temperature),
        }  # fmt: skip
        if rl.policy.correction != "none":
            part["sampler_logprobs"] = decoded.logprobs
            part["old_logprobs"] = response_logprobs(params, cfg, *inputs, temperature, place)[0] * decoded.mask
            inputs = _after(part["old_logprobs"], *inputs)
        if rl.kl.coefficient > 0:
            part["ref_logprobs"] = response_logprobs(reference, cfg, *inputs, temperature, place)[0] * decoded.mask
            inputs = _after(part["ref_logprobs"], *inputs)
        if rl.critic is not None:
            part["values"] = response_values(critic, cfg, *inputs, place) * decoded.mask
        return part

    return annotate


def _after(logprobs: jax.Array, tokens: jax.Array, *rest: Any) -> tuple:
    """The inputs of the next model, to be had only after the log-probs (B, R) of the last one: one model at a time needs
    less memory, and see "One order" in docs/multihost.md. A log-prob is never above 0, which the compiler does not know."""
    never = jnp.any(logprobs > 1e30, axis=1, keepdims=True)
    return jnp.where(never, 0, tokens), *rest


def make_experience(rl: RlConfig) -> Callable[..., tuple[dict, dict, jax.Array, jax.Array]]:
    """Jitted: that part, the rollout, its rewards and valid (B,), KL coefficient and reward statistics
    -> the batch for the updates, metrics, and the two numbers as they go on."""

    @jax.jit
    def experience(part, decoded: Decoded, rewards, valid, coefficient, stats):
        mask = decoded.mask * valid[:, None]  # a row without a verdict is left out of everything, its KL term too
        lengths = jnp.sum(decoded.mask, axis=1)
        scores, stats = _shaped(rewards, valid, lengths, decoded.mask.shape[1], stats, rl)
        batch = part | {"mask": mask, "kl_coefficient": jnp.full(rewards.shape, coefficient)}
        metrics = {"kl_coefficient": coefficient}
        penalty = jnp.zeros_like(mask)
        if rl.kl.coefficient > 0:
            kl = kl_terms(part["old_logprobs"], part["ref_logprobs"], "k1")
            metrics["kl_sequence"] = jnp.sum(kl * mask) / jnp.maximum(jnp.sum(valid), 1)
            if rl.kl.in_reward:
                penalty = coefficient * kl_terms(part["old_logprobs"], part["ref_logprobs"], rl.kl.estimator) * mask
            coefficient = adapted_coefficient(coefficient, metrics["kl_sequence"], rewards.shape[0], rl.kl)
        found, more = _advantages(batch, scores, valid, penalty, rl)
        metrics |= more | {
            "length_tokens": jnp.mean(lengths),
            "finished": jnp.mean(decoded.finished.astype(jnp.float32)),
            "no_signal_groups": 1.0 - jnp.mean(adv.groups_with_signal(rewards, valid, rl.group).astype(jnp.float32)),
            "tokens": jnp.sum(part["segment_ids"]).astype(jnp.float32),
        }
        return batch | found, metrics, coefficient, stats

    return experience


def _shaped(rewards, valid, lengths, max_tokens: int, stats, rl: RlConfig):
    """Scores (B,) after the over-long penalty, running normalisation and clip, and the statistics with them."""
    shaping, scores = rl.shaping, jnp.where(valid, rewards, 0.0)
    if shaping.overlong_buffer:
        scores = scores - shaping.overlong_penalty * adv.overlong_penalty(lengths, max_tokens, shaping.overlong_buffer)
    if shaping.normalise:
        stats = running_stats(stats, scores, valid)
        spread = jnp.sqrt(stats[2] / jnp.maximum(stats[0] - 1.0, 1.0))
        scores = (scores - stats[1]) / (spread + 1e-6)
    return (jnp.clip(scores, -shaping.clip, shaping.clip) if shaping.clip else scores), stats


def running_stats(stats: jax.Array, x: jax.Array, valid: jax.Array) -> jax.Array:
    """Count, mean and sum of squared deviations (3,) with the valid values of x (B,) added (Chan et al. 1983)."""
    count, mean, squares = stats
    new = jnp.sum(valid)
    new_mean = masked_mean(x, valid.astype(jnp.float32))
    total, delta = count + new, new_mean - mean
    squares = squares + jnp.sum(jnp.where(valid, x - new_mean, 0.0) ** 2) + delta**2 * count * new / jnp.maximum(total, 1.0)
    return jnp.stack([total, mean + delta * new / jnp.maximum(total, 1.0), squares])


def _advantages(batch: dict, scores, valid, penalty, rl: RlConfig) -> tuple[dict, dict]:
    """Advantages (B, R), with a critic also returns, and what to log of them."""
    mask = batch["mask"]
    if rl.critic is None:
        return {"advantages": adv.advantages(scores, valid, penalty, mask, rl.group, rl.advantage)}, {}
    rewards = adv.token_rewards(scores, penalty, mask)
    found, returns = adv.gae(rewards, batch["values"], mask, rl.critic.gamma, rl.critic.lam)
    metrics = {"explained_variance": explained_variance(batch["values"], returns, mask)}
    found = whiten(found, mask) if rl.critic.whiten else found
    return {"advantages": found, "returns": returns}, metrics


def plain_view(frozen: None, params: Any) -> Any:
    """The model of a state that trains all of its weights: these."""
    return params


def critic_base(frozen: Any) -> Any:
    """The frozen part of a critic: where the policy is an adapter, so is the critic, beside its head, over the same base."""
    return None if frozen is None else {"model": frozen}


def make_step(
    rollout: RolloutFn, refill: Callable[[Any, Rollout, int], tuple[Rollout, dict]] | None, annotate: Callable,
    experience: Callable, learn: Callable, reference: Any, sampling: SamplingParams, rl: RlConfig, seed: int,
    on_samples: Callable[[int, list[Sample], RewardResult], None],
    view: Callable[[Any, Any], Any] = plain_view, fetch: Callable[[Any], Any] | None = None,
) -> Callable[[RlState, dict, int], tuple[RlState, dict]]:  # fmt: skip
    """The body of the RL loop.

    `view(state.frozen, state.params)` is the model of a state that trains an adapter; its reference is then the frozen
    base, where `reference` is None and never refreshed, and its critic is an adapter and a head over that base. `fetch`
    brings a reference to the devices that waits elsewhere.
    """
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))

    def step(state: RlState, prompts: dict, number: int) -> tuple[RlState, dict]:
        clock = [time.perf_counter()]
        policy = view(state.frozen, state.params)
        rolled, refilled = rollout(policy, prompts, number), {}
        if refill is not None:
            rolled, refilled = refill(policy, rolled, number)
        clock.append(time.perf_counter())
        compared = reference_of(state, reference, view)
        # Runs on the device while the rewards are waited for.
        part = annotate(
            policy if rl.policy.correction != "none" else None,
            compared if fetch is None else fetch(compared),
            view(critic_base(state.frozen), state.critic.params) if state.critic is not None else None,
            rolled.prompts["tokens"], rolled.prompts["segment_ids"], rolled.decoded, sampling.temperature,
        )  # fmt: skip
        result = checked(rolled.result(), rl.max_lost_rewards)
        clock.append(time.perf_counter())
        batch, metrics, coefficient, stats = experience(
            part, rolled.decoded, result.values, result.valid, state.kl_coefficient, state.reward_stats
        )
        state = state.replace(kl_coefficient=coefficient, reward_stats=stats)
        state, learned = learn(state, batch, seed, number)
        if rl.kl.refresh and number % rl.kl.refresh == 0:
            state = state.replace(reference=copy(state.params))
        jax.block_until_ready(state.params)
        clock.append(time.perf_counter())
        if number % rl.samples_every == 0:
            on_samples(number, rolled.samples, result)
        phases = dict(zip(("rollout", "reward", "update"), np.diff(clock), strict=True))
        seconds = {f"seconds/{k}": v for k, v in phases.items()}
        return state, metrics | learned | reward_metrics(result) | refilled | seconds

    return step


def reference_of(state: RlState, reference: Any, view: Callable[[Any, Any], Any]) -> Any:
    """The refreshed weights, else the given ones, else the base under an adapter."""
    if state.reference is not None:
        return view(state.frozen, state.reference)
    return state.frozen if reference is None else reference


def reward_metrics(result: RewardResult) -> dict[str, float]:
    """Mean, spread and quantiles of the valid rewards, the share of invalid ones, and the mean of each component where it
    applies and is valid. A component that no row has is left out."""
    values = result.values[result.valid] if result.valid.any() else np.array([np.nan])
    low, median, high = np.quantile(values, (0.1, 0.5, 0.9))
    out = {"reward": values.mean(), "reward_std": values.std(), "reward_p10": low, "reward_p50": median}
    out |= {"reward_p90": high, "reward_lost": result.invalid_share}
    known = {name: part[result.valid & np.isfinite(part)] for name, part in result.components.items()}
    return out | {f"reward/{name}": part.mean() for name, part in known.items() if len(part)}
