"""The first half of an RL step: prompts --sampler--> Decoded --tokenizer--> Samples --reward--> RewardResult."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlaif_jax.algorithms.advantages import groups_with_signal
from rlaif_jax.data.records import Prompt
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.rewards.base import RewardFn, RewardResult, Sample, checked, joined
from rlaif_jax.sampling.decode import Decoded
from rlaif_jax.sampling.filters import SamplingParams
from rlaif_jax.sampling.sampler import Sampler
from rlaif_jax.sharding.move import gather
from rlaif_jax.trainers.config import RlConfig
from rlaif_jax.trainers.rl_types import Rollout, RolloutFn


def to_samples(
    decoded: Decoded, prompts: Sequence[Prompt], group: int, tokenizer: Tokenizer
) -> tuple[list[Sample], Decoded]:
    """The texts of a rollout, and the rollout as host arrays. Prompt i owns rows i * group to (i + 1) * group - 1.

    Every process gets all rows: tokens are small, and all processes then compute the same rewards and filters.
    """
    host = gather(decoded)
    lengths = host.mask.sum(axis=1).astype(int)
    return [
        Sample(p.prompt, tokenizer.decode(host.tokens[row, : lengths[row]].tolist()), bool(host.finished[row]), p.system, p.meta)
        for i, p in enumerate(prompts)
        for row in range(i * group, (i + 1) * group)
    ], host


def _done(result: RewardResult) -> Future[RewardResult]:
    future: Future[RewardResult] = Future()
    future.set_result(result)
    return future


def make_rollout(
    sampler: Sampler, reward: RewardFn, *, records: Sequence[Prompt], tokenizer: Tokenizer, sampling: SamplingParams,
    rl: RlConfig, seed: int,
) -> RolloutFn:  # fmt: skip
    """rollout(params, prompts, step, first_row=0). A thread computes the rewards of a chunk while the next one is sampled.

    With several processes there is no such thread: all processes must start their device programs in the same order.
    """
    thread = ThreadPoolExecutor(1, "reward") if jax.process_count() == 1 else None
    join = jax.jit(lambda parts: jax.tree.map(lambda *x: jnp.concatenate(x), *parts))
    group, size = rl.group_size, rl.train.batch_size // rl.rollout_chunks

    def rollout(params: Any, prompts: dict, number: int, first_row: int = 0) -> Rollout:
        parts, samples, rewards = [], [], []
        for start in range(0, len(prompts["row"]), size):
            rows = slice(start, start + size)
            decoded = sampler(
                params, prompts["tokens"][rows], prompts["segment_ids"][rows], seed, number, sampling,
                first_row + start * group,
            )  # fmt: skip
            texts, _ = to_samples(decoded, [records[int(r)] for r in prompts["row"][rows]], group, tokenizer)
            rewards.append(_done(reward(texts)) if thread is None else thread.submit(reward, texts))
            parts.append(decoded)
            samples += texts
        return Rollout(prompts, parts[0] if len(parts) == 1 else join(parts), samples, rewards)

    return rollout


def make_refill(
    rollout: RolloutFn, next_prompts: Callable[[], dict], rl: RlConfig
) -> Callable[[Any, Rollout, int], tuple[Rollout, dict[str, float]]]:  # fmt: skip
    """Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): refill(params, rollout, step) -> (rollout, metrics).

    Groups whose rewards are all equal give no signal. While there are any, another batch of prompts is sampled, at most
    `rl.max_resamples` times. Groups with a signal are used first, in the order of sampling; groups without one fill the rest.
    """
    group, wanted = rl.group_size, rl.train.batch_size
    pick = jax.jit(lambda parts, rows: jax.tree.map(lambda *x: jnp.concatenate(x)[rows], *parts))

    def refill(params: Any, first: Rollout, number: int) -> tuple[Rollout, dict[str, float]]:
        rounds, results, signal = [first], [], []
        while True:
            results.append(checked(rounds[-1].result(), rl.max_invalid_rewards))
            signal += np.asarray(groups_with_signal(results[-1].values, results[-1].valid, group)).tolist()
            if sum(signal) >= wanted or len(rounds) > rl.max_resamples:
                break
            rounds.append(rollout(params, next_prompts(), number, len(rounds) * wanted * group))
        metrics = {"refills": float(len(rounds) - 1), "frac_reward_zero_std": 1.0 - float(np.mean(signal))}
        if len(rounds) == 1:
            return first, metrics
        chosen = sorted(range(len(signal)), key=lambda g: not signal[g])[:wanted]
        rows = np.concatenate([np.arange(g * group, (g + 1) * group) for g in chosen])
        # Pad to the largest number of rounds with copies of the last one, which are never picked: one compiled shape.
        parts = [r.decoded for r in rounds] + [rounds[-1].decoded] * (rl.max_resamples + 1 - len(rounds))
        prompts = {k: np.concatenate([r.prompts[k] for r in rounds])[chosen] for k in first.prompts}
        samples = [e for r in rounds for e in r.samples]
        return Rollout(prompts, pick(parts, rows), [samples[i] for i in rows], [_done(joined(results).take(rows))]), metrics

    return refill
