"""One step of reinforcement learning from AI feedback:

    prompts --sampler--> Decoded --tokenizer--> Exchanges --reward--> RewardResult --> advantages --> updates
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlaif_jax.algorithms.advantages import group_advantages, groups_without_signal
from rlaif_jax.algorithms.grpo import GrpoConfig, grpo_loss
from rlaif_jax.config import RlConfig
from rlaif_jax.data.records import Prompt
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.metrics import Mean
from rlaif_jax.models import transformer
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.rewards.base import Exchange, RewardFn, RewardResult, checked
from rlaif_jax.sampling.decode import Decoded
from rlaif_jax.sampling.filters import SamplingParams
from rlaif_jax.sampling.rollout import Sampler, sequences
from rlaif_jax.sharding.placement import Placement
from rlaif_jax.trainers.update import TrainState


def response_logprobs(
    params: Any, cfg: ModelConfig, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array, length: int,
    temperature: jax.Array, place: Placement | None = None,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """log-probs and entropy (B, R) of the last `length` tokens of each row; only their logits are computed."""
    hidden = transformer.forward(params, cfg, tokens, segment_ids, positions, place)
    return transformer.logprobs(params, cfg, hidden[:, -length - 1 : -1], tokens[:, -length:], temperature)


def rl_loss(
    params: Any, batch: dict[str, jax.Array], cfg: ModelConfig, grpo: GrpoConfig, place: Placement | None = None
) -> tuple[Mean, dict[str, Mean]]:
    """GRPO on tokens, segment_ids, positions (B, Tp + R); mask, old_logprobs, ref_logprobs (B, R); advantages (B,)."""
    logp, entropy = response_logprobs(
        params, cfg, batch["tokens"], batch["segment_ids"], batch["positions"], batch["mask"].shape[1],
        batch["temperature"][0], place,
    )  # fmt: skip
    return grpo_loss(logp, entropy, batch, grpo)


def make_reference(cfg: ModelConfig, rl: RlConfig, place: Placement) -> Callable[..., dict]:
    """Jitted: a rollout -> the part of the batch that needs no reward, the reference's log-probs among it."""

    @jax.jit
    def reference(ref_params, prompts, segment_ids, decoded: Decoded, temperature):
        seq = sequences(prompts, segment_ids, decoded, rl.grpo.group)
        ref = decoded.logprobs
        if rl.grpo.kl_coefficient > 0:
            ref, _ = response_logprobs(
                ref_params, cfg, seq.tokens, seq.segment_ids, seq.positions, decoded.mask.shape[1], temperature, place
            )
        return {
            "tokens": seq.tokens, "segment_ids": seq.segment_ids, "positions": seq.positions,
            "old_logprobs": decoded.logprobs, "ref_logprobs": ref,
            "temperature": jnp.full(decoded.mask.shape[:1], temperature),
        }  # fmt: skip

    return reference


def make_experience(rl: RlConfig) -> Callable[..., tuple[dict, dict]]:
    """Jitted: that part, the rollout and its rewards -> the batch for the updates, and the rollout's metrics."""
    group = rl.grpo.group

    @jax.jit
    def experience(part, decoded: Decoded, rewards, valid):
        advantages = group_advantages(rewards, valid, group, scale=rl.grpo.advantage_scale)
        # A row without a verdict is left out of everything, its KL term too.
        batch = part | {"mask": decoded.mask * valid[:, None], "advantages": advantages}
        metrics = {
            "length_tokens": jnp.mean(jnp.sum(decoded.mask, axis=1)),
            "finished": jnp.mean(decoded.finished.astype(jnp.float32)),
            "no_signal_groups": groups_without_signal(rewards, valid, group),
            "tokens": jnp.sum(part["segment_ids"]).astype(jnp.float32),
        }
        return batch, metrics

    return experience


def to_exchanges(
    decoded: Decoded, prompts: Sequence[Prompt], group: int, tokenizer: Tokenizer
) -> tuple[list[Exchange], Decoded]:
    """Texts of a rollout (and the rollout on the host); prompt i owns rows i * group to (i + 1) * group - 1."""
    host = jax.device_get(decoded)
    lengths = host.mask.sum(axis=1).astype(int)
    return [
        Exchange(p.prompt, tokenizer.decode(host.tokens[row, : lengths[row]].tolist()), bool(host.finished[row]), p.system)
        for i, p in enumerate(prompts)
        for row in range(i * group, (i + 1) * group)
    ], host


def _minibatches(batch: dict, count: int) -> list[dict]:
    """Interleaved prompt groups, so that every device keeps rows of its own in each minibatch."""
    return [jax.tree.map(lambda x, i=i: x.reshape(-1, count, *x.shape[1:])[:, i], batch) for i in range(count)]


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Sampled answers of a batch on the device, their texts, and the rewards to come."""

    decoded: Decoded
    exchanges: list[Exchange]
    rewards: list[Future[RewardResult]]

    def result(self) -> RewardResult:
        """Waits for the rewards of all parts and joins them."""
        parts = [job.result() for job in self.rewards]
        names = parts[0].components
        return RewardResult(
            np.concatenate([p.values for p in parts]), np.concatenate([p.valid for p in parts]),
            {name: np.concatenate([p.components[name] for p in parts]) for name in names},
        )  # fmt: skip


def make_rollout(
    sampler: Sampler, reward: RewardFn, records: Sequence[Prompt], tokenizer: Tokenizer, sampling: SamplingParams,
    rl: RlConfig, seed: int,
) -> Callable[[Any, dict, int], Rollout]:  # fmt: skip
    """rollout(params, prompts, step); a chunk's reward is worked on in a thread while the next chunk is sampled."""
    judge = ThreadPoolExecutor(1, "reward")
    join = jax.jit(lambda parts: jax.tree.map(lambda *x: jnp.concatenate(x), *parts))
    group, size = rl.grpo.group, rl.train.batch_size // rl.rollout_chunks

    def rollout(params: Any, prompts: dict, number: int) -> Rollout:
        parts, exchanges, rewards = [], [], []
        for start in range(0, len(prompts["row"]), size):
            rows = slice(start, start + size)
            decoded = sampler(
                params, prompts["tokens"][rows], prompts["segment_ids"][rows], seed, number, sampling, start * group
            )
            texts, _ = to_exchanges(decoded, [records[int(r)] for r in prompts["row"][rows]], group, tokenizer)
            rewards.append(judge.submit(reward, texts))
            parts.append(decoded)
            exchanges += texts
        return Rollout(parts[0] if len(parts) == 1 else join(parts), exchanges, rewards)

    return rollout


def make_step(
    rollout: Callable[[Any, dict, int], Rollout], reference: Callable, experience: Callable, update: Callable,
    ref_params: Any, sampling: SamplingParams, rl: RlConfig,
    on_samples: Callable[[int, list[Exchange], RewardResult], None],
) -> Callable[[TrainState, dict, int], tuple[TrainState, dict]]:  # fmt: skip
    """The body of the RL loop."""
    split = jax.jit(partial(_minibatches, count=rl.minibatches))

    def step(state: TrainState, prompts: dict, number: int) -> tuple[TrainState, dict]:
        clock = [time.perf_counter()]
        rolled = rollout(state.params, prompts, number)
        clock.append(time.perf_counter())
        # Runs on the device while the rewards are waited for.
        part = reference(ref_params, prompts["tokens"], prompts["segment_ids"], rolled.decoded, sampling.temperature)
        result = checked(rolled.result(), rl.max_lost_rewards)
        clock.append(time.perf_counter())
        batch, metrics = experience(part, rolled.decoded, result.values, result.valid)
        for _ in range(rl.epochs):
            for piece in split(batch):
                state, update_metrics = update(state, piece)
        jax.block_until_ready(state.params)
        clock.append(time.perf_counter())
        if number % rl.samples_every == 0:
            on_samples(number, rolled.exchanges, result)
        phases = dict(zip(("rollout", "reward", "update"), np.diff(clock), strict=True))
        return state, metrics | update_metrics | reward_metrics(result) | {f"seconds/{k}": v for k, v in phases.items()}

    return step


def reward_metrics(result: RewardResult) -> dict[str, float]:
    """Mean, spread and quantiles of the rewards that have a verdict, the share that has none, and each component."""
    values = result.values[result.valid]
    low, median, high = np.quantile(values, (0.1, 0.5, 0.9))
    out = {"reward": values.mean(), "reward_std": values.std(), "reward_p10": low, "reward_p50": median}
    out |= {"reward_p90": high, "reward_lost": 1.0 - result.valid.mean()}
    return out | {f"reward/{name}": part[result.valid].mean() for name, part in result.components.items()}
