"""One step of reinforcement learning from AI feedback, GRPO's family or PPO:

    prompts --sampler--> Rollout --score_rollout--> log-probs, values --compute_advantages--> RlBatch --update--> new state
                             `--reward--> RewardResult ------------------'

The step comes first in this file, then its parts in this order. The update is in `rl_update`; `rl_programs` builds all parts.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

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
from rlaif_jax.sampling.sampler import Sequences, sequences
from rlaif_jax.sharding.order import after
from rlaif_jax.sharding.placement import Placement
from rlaif_jax.trainers.config import RlConfig
from rlaif_jax.trainers.offload import to_devices
from rlaif_jax.trainers.rl_types import RlBatch, RlNumbers, RlPrograms, RlState, Rollout, RolloutFn, ScoringModels
from rlaif_jax.trainers.trainable import Trainable, scalar_base


def make_step(
    programs: RlPrograms, rollout: RolloutFn, *, sampling: SamplingParams, seed: int, reference: Any = None,
    refill: Callable[[Any, Rollout, int], tuple[Rollout, dict]] | None = None,
    on_samples: Callable[[int, list[Sample], RewardResult], None] = lambda step, samples, result: None,
) -> Callable[[RlState, dict, int], tuple[RlState, dict]]:  # fmt: skip
    """One RL step: (state, prompts, step) -> (state, metrics).

    `reference`: full reference weights if `needs_reference`, in host memory with `rl.offload_reference`.
    `refill`: see `rollout.make_refill`. `on_samples` gets texts and rewards every `rl.samples_every` steps.
    """
    rl, trainable = programs.rl, programs.trainable
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))

    def step(state: RlState, prompts: dict, number: int) -> tuple[RlState, dict]:
        clock = [time.perf_counter()]
        policy = trainable.full_params(state.frozen, state.params)
        rolled, refilled = rollout(policy, prompts, number), {}
        if refill is not None:
            rolled, refilled = refill(policy, rolled, number)
        clock.append(time.perf_counter())
        models = scoring_models(rl, trainable, state, reference)
        if rl.offload_reference:
            models = models._replace(reference=to_devices(models.reference))
        texts = rolled.prompts["tokens"], rolled.prompts["segment_ids"]
        # Dispatched before the rewards are read: the devices compute while the host waits for the rewards.
        batch = programs.score_rollout(models, *texts, rolled.decoded, sampling.temperature)
        result = checked(rolled.result(), rl.max_invalid_rewards)
        clock.append(time.perf_counter())
        batch, numbers, metrics = programs.compute_advantages(batch, rolled.decoded, result.values, result.valid, state.numbers)
        state, updated = programs.update(state.replace(**numbers._asdict()), batch, seed, number)
        if rl.kl.refreshed and number % rl.kl.ref_sync_steps == 0:
            state = state.replace(reference=copy(state.params))
        jax.block_until_ready(state.params)
        clock.append(time.perf_counter())
        if number % rl.samples_every == 0:
            on_samples(number, rolled.samples, result)
        phases = dict(zip(("rollout", "reward", "update"), np.diff(clock), strict=True))
        seconds = {f"seconds/{k}": v for k, v in phases.items()}
        return state, metrics | updated | reward_metrics(result) | refilled | seconds

    return step


def needs_reference(rl: RlConfig, trainable: Trainable) -> bool:
    """Whether the stage needs separate, fixed reference weights.

    It does if there is a KL term and the reference is neither refreshed from the policy nor the frozen base of LoRA.
    """
    return rl.kl.active and not rl.kl.refreshed and not trainable.frozen_base


def scoring_models(rl: RlConfig, trainable: Trainable, state: RlState, reference: Any) -> ScoringModels:
    """Full weights of the models that these settings need. `reference`: as in `make_step`. Shared weights are the same arrays."""
    critic = None if state.critic is None else trainable.full_params(scalar_base(state.frozen), state.critic.params)
    return ScoringModels(
        trainable.full_params(state.frozen, state.params) if rl.policy.rollout_correction != "none" else None,
        reference_of(trainable, state, reference) if rl.kl.active else None,
        critic,
    )


def reference_of(trainable: Trainable, state: RlState, reference: Any) -> Any:
    """Full reference weights: the refreshed ones of the state, else `reference`, else the frozen base of LoRA."""
    if state.reference is not None:
        return trainable.full_params(state.frozen, state.reference)
    return state.frozen if reference is None else reference


def make_score_rollout(cfg: ModelConfig, rl: RlConfig, place: Placement) -> Callable[..., RlBatch]:
    """Jitted: (models, prompts (P, Tp), segment_ids (P, Tp), decoded, temperature ()) -> the fields of the batch that need
    no reward: tokens, log-probs of old policy and reference, values. The models run one after the other to save memory."""

    @jax.jit
    def score_rollout(models: ScoringModels, prompts, segment_ids, decoded: Decoded, temperature) -> RlBatch:
        seq = sequences(prompts, segment_ids, decoded, rl.group_size)
        length = decoded.mask.shape[1]
        batch = RlBatch(
            tokens=seq.tokens, segment_ids=seq.segment_ids, positions=seq.positions, temperature=temperature,
            old_logprobs=decoded.logprobs,
        )  # fmt: skip

        def logprobs(params):
            return response_logprobs(params, cfg, seq, length, temperature, place)[0] * decoded.mask

        if rl.policy.rollout_correction != "none":
            batch = batch.replace(sampler_logprobs=decoded.logprobs, old_logprobs=logprobs(models.policy))
            seq = _after(seq, batch.old_logprobs)
        if rl.kl.active:
            batch = batch.replace(ref_logprobs=logprobs(models.reference))
            seq = _after(seq, batch.ref_logprobs)
        if rl.critic is not None:
            batch = batch.replace(values=response_values(models.critic, cfg, seq, length, place) * decoded.mask)
        return batch

    return score_rollout


def _after(seq: Sequences, logprobs: jax.Array) -> Sequences:
    """`seq` unchanged, but XLA must compute `logprobs` (B, R) first, so two models' activations are never in memory together.

    The compiler does not know that log-probs are <= 0, so it cannot remove the dependency.
    """
    return dataclasses.replace(seq, tokens=after(seq.tokens, jnp.any(logprobs > 1e30, axis=1, keepdims=True)))


def response_logprobs(
    params: Any, cfg: ModelConfig, seq: Sequences, length: int, temperature: jax.Array, place: Placement | None = None
) -> tuple[jax.Array, jax.Array]:
    """Log-probs and entropy (B, R) of the last `length` tokens of each row. No other logits are computed."""
    hidden = transformer.forward(params, cfg, seq.tokens, seq.segment_ids, seq.positions, place)
    return transformer.logprobs(params, cfg, hidden[:, -length - 1 : -1], seq.tokens[:, -length:], temperature)


def response_values(
    params: Any, cfg: ModelConfig, seq: Sequences, length: int, place: Placement | None = None
) -> jax.Array:
    """Critic values (B, R) of the states before each of the last `length` tokens."""
    return heads.values(params, cfg, seq.tokens, seq.segment_ids, seq.positions, place)[:, -length - 1 : -1]


def make_compute_advantages(rl: RlConfig) -> Callable[..., tuple[RlBatch, RlNumbers, dict[str, jax.Array]]]:
    """Jitted: (the batch of `score_rollout`, decoded, rewards (B,) float32, valid (B,) bool, numbers) -> (the full batch,
    the updated numbers, metrics)."""

    @jax.jit
    def compute_advantages(batch: RlBatch, decoded: Decoded, rewards, valid, numbers: RlNumbers):
        coefficient = numbers.kl_coefficient
        mask = decoded.mask * valid[:, None]  # a row without a valid reward is masked everywhere, also in the KL term
        lengths = jnp.sum(decoded.mask, axis=1)
        scores, stats = _shaped(rewards, valid, lengths, decoded.mask.shape[1], numbers.reward_stats, rl)
        batch = batch.replace(mask=mask, kl_coefficient=coefficient)
        metrics = {"kl_coefficient": coefficient}
        penalty = jnp.zeros_like(mask)
        if rl.kl.active:
            kl = kl_terms(batch.old_logprobs, batch.ref_logprobs, "k1")
            metrics["kl_sequence"] = jnp.sum(kl * mask) / jnp.maximum(jnp.sum(valid), 1)
            if rl.kl.in_reward:
                penalty = coefficient * kl_terms(batch.old_logprobs, batch.ref_logprobs, rl.kl.estimator) * mask
            coefficient = adapted_coefficient(coefficient, metrics["kl_sequence"], rewards.shape[0], rl.kl)
        batch, found = _with_advantages(batch, scores, valid, penalty, rl)
        metrics |= found | {
            "length_tokens": jnp.mean(lengths),
            "finished": jnp.mean(decoded.finished.astype(jnp.float32)),
            "tokens": jnp.sum(batch.segment_ids).astype(jnp.float32),
        }
        if rl.group_size > 1:  # one sample alone has no spread, and needs none: a critic or no baseline gives its signal
            signal = adv.groups_with_signal(rewards, valid, rl.group_size)
            metrics["frac_reward_zero_std"] = 1.0 - jnp.mean(signal.astype(jnp.float32))
        return batch, RlNumbers(coefficient, stats), metrics

    return compute_advantages


def _shaped(rewards, valid, lengths, max_tokens: int, stats, rl: RlConfig):
    """Shaped rewards (B,): over-long penalty, running normalisation, clip; and the updated running statistics."""
    shaping, scores = rl.shaping, jnp.where(valid, rewards, 0.0)
    if shaping.overlong_buffer:
        scores = scores - shaping.overlong_penalty * adv.overlong_penalty(lengths, max_tokens, shaping.overlong_buffer)
    if shaping.normalise:
        stats = running_stats(stats, scores, valid)
        spread = jnp.sqrt(stats[2] / jnp.maximum(stats[0] - 1.0, 1.0))
        scores = (scores - stats[1]) / (spread + 1e-6)
    return (jnp.clip(scores, -shaping.clip, shaping.clip) if shaping.clip else scores), stats


def running_stats(stats: jax.Array, x: jax.Array, valid: jax.Array) -> jax.Array:
    """Running count, mean and sum of squared deviations (3,), updated by the valid values of x (B,) (Chan et al. 1983)."""
    count, mean, squares = stats
    new = jnp.sum(valid)
    new_mean = masked_mean(x, valid.astype(jnp.float32))
    total, delta = count + new, new_mean - mean
    squares = squares + jnp.sum(jnp.where(valid, x - new_mean, 0.0) ** 2) + delta**2 * count * new / jnp.maximum(total, 1.0)
    return jnp.stack([total, mean + delta * new / jnp.maximum(total, 1.0), squares])


def _with_advantages(batch: RlBatch, scores, valid, penalty, rl: RlConfig) -> tuple[RlBatch, dict]:
    """The batch with advantages (B, R), and returns if there is a critic; and metrics of them."""
    if rl.critic is None:
        return batch.replace(advantages=adv.advantages(scores, valid, penalty, batch.mask, rl.group_size, rl.advantage)), {}
    rewards = adv.token_rewards(scores, penalty, batch.mask)
    found, returns = adv.gae(rewards, batch.values, batch.mask, rl.critic.gamma, rl.critic.lam)
    metrics = {"explained_variance": explained_variance(batch.values, returns, batch.mask)}
    found = whiten(found, batch.mask) if rl.critic.whiten else found
    return batch.replace(advantages=found, returns=returns), metrics


def rl_loss(
    params: Any, batch: RlBatch, cfg: ModelConfig, rl: RlConfig, place: Placement | None = None
) -> tuple[Mean, Metrics]:
    """The policy loss; `params` are full weights."""
    length = batch.mask.shape[1]
    logp, entropy = response_logprobs(params, cfg, batch.sequences, length, batch.temperature, place)
    return policy_loss(
        logp, entropy, rl.policy, rl.kl, mask=batch.mask, old_logprobs=batch.old_logprobs, advantages=batch.advantages,
        ref_logprobs=batch.ref_logprobs, sampler_logprobs=batch.sampler_logprobs, kl_coefficient=batch.kl_coefficient,
    )  # fmt: skip


def critic_loss(
    params: Any, batch: RlBatch, cfg: ModelConfig, rl: RlConfig, place: Placement | None = None
) -> tuple[Mean, Metrics]:
    """The critic loss; `params` are full weights."""
    values = response_values(params, cfg, batch.sequences, batch.mask.shape[1], place)
    return losses.value_loss(values, batch.values, batch.returns, batch.mask, rl.critic.value_clip)


def reward_metrics(result: RewardResult) -> dict[str, float]:
    """Mean, standard deviation and quantiles of the valid rewards, the share of invalid ones, and the mean of each component over
    the valid rows it applies to. A component that applies to no row is left out."""
    values = result.values[result.valid] if result.valid.any() else np.array([np.nan])
    low, median, high = np.quantile(values, (0.1, 0.5, 0.9))
    out = {"reward": values.mean(), "reward_std": values.std(), "reward_p10": low, "reward_p50": median}
    out |= {"reward_p90": high, "reward_invalid": result.invalid_share}
    known = {name: part[result.valid & np.isfinite(part)] for name, part in result.components.items()}
    return out | {f"reward/{name}": part.mean() for name, part in known.items() if len(part)}
