"""What an RL step hands from one part to the next, with shapes: rollout, batch, state; and the compiled parts themselves.

Axes: B rows (prompts times group), Tp prompt tokens, R response tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from rlaif_jax.rewards.base import RewardResult, Sample, joined
from rlaif_jax.sampling.decode import Decoded
from rlaif_jax.sampling.sampler import Sampler, Sequences
from rlaif_jax.trainers.config import RlConfig
from rlaif_jax.trainers.trainable import Trainable
from rlaif_jax.trainers.update import TrainState


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Sampled answers to `prompts` (rows on the host) on the devices, their texts, and the rewards to come."""

    prompts: dict[str, np.ndarray]
    decoded: Decoded
    samples: list[Sample]
    rewards: Sequence[Future[RewardResult]]

    def result(self) -> RewardResult:
        """Blocks until the rewards of all parts are there and joins them."""
        return joined([job.result() for job in self.rewards])


RolloutFn = Callable[..., Rollout]


@chex.dataclass(frozen=True, kw_only=True)
class RlBatch:
    """What policy and critic learn from. Rows are split over the mesh; the two scalars are replicated, and every micro-batch
    gets them as they are.

    Attributes:
      tokens, segment_ids, positions: (B, Tp + R) int32, the left-padded prompt and its response; segment 0 is padding.
      temperature: () float32, that of sampling; all log-probs are taken at it.
      old_logprobs: (B, R) float32 nats, of the policy that sampled.
      sampler_logprobs: (B, R) float32, the sampler's own; None without `policy.rollout_correction`.
      ref_logprobs: (B, R) float32, of the reference; None without a KL term.
      values: (B, R) float32, of the critic before its updates; None without one.
      mask: (B, R) float32, 1 on response tokens of rows with a valid reward. This and the rest is None until
        `compute_advantages`.
      advantages: (B, R) float32.
      returns: (B, R) float32, the critic's targets; None without one.
      kl_coefficient: () float32.
    """

    tokens: jax.Array
    segment_ids: jax.Array
    positions: jax.Array
    temperature: jax.Array
    old_logprobs: jax.Array
    sampler_logprobs: jax.Array | None = None
    ref_logprobs: jax.Array | None = None
    values: jax.Array | None = None
    mask: jax.Array | None = None
    advantages: jax.Array | None = None
    returns: jax.Array | None = None
    kl_coefficient: jax.Array | None = None

    @property
    def sequences(self) -> Sequences:
        """The tokens as a model reads them."""
        return Sequences(self.tokens, self.segment_ids, self.positions)


class RlNumbers(NamedTuple):
    """The numbers of a state that change without a gradient: the KL coefficient () float32, adaptive or not, and the reward
    statistics (3,) float32: count, mean and sum of squared deviations of all rewards so far."""

    kl_coefficient: jax.Array
    reward_stats: jax.Array


@chex.dataclass(frozen=True)
class RlState(TrainState):
    """The policy's state and whatever else an RL step changes; all of it but `frozen` is in one checkpoint.

    Attributes:
      critic: the critic's state, or None; its own `frozen` is None, since the policy's base serves both.
      reference: the reference's trained weights where they are refreshed; None where they never change.
      kl_coefficient, reward_stats: see `RlNumbers`.
    """

    critic: TrainState | None
    reference: Any
    kl_coefficient: jax.Array
    reward_stats: jax.Array

    @property
    def numbers(self) -> RlNumbers:
        """The KL coefficient and the reward statistics."""
        return RlNumbers(self.kl_coefficient, self.reward_stats)


class ScoringModels(NamedTuple):
    """Full weights of the models that score a rollout, each None where it is not needed: the policy (with a correction), the
    reference (with a KL term), the critic (PPO)."""

    policy: Any
    reference: Any
    critic: Any


@dataclasses.dataclass(frozen=True)
class RlPrograms:
    """The compiled parts of one RL stage, all over the same models; made by `rl_programs.build`.

    Attributes:
      rl, trainable: the settings they were built for, and what is trained of policy and critic.
      sampler: see `sampling.sampler.make_sampler`.
      score_rollout: jitted, see `rl.make_score_rollout`.
      compute_advantages: jitted, see `rl.make_compute_advantages`.
      update: (state, batch, seed, step) -> (state, metrics): all updates of one rollout; the state is donated.
      update_program: the jitted function in `update`: (state without `frozen`, batch, seed, step, frozen).
      init: (policy weights, key, critic weights=None) -> (state, shardings). Policy weights are full and may be donated later;
        the critic's are what is trained of it, None starts it from the policy with a head of zeros.
      abstract: the state as ShapeDtypeStructs with shardings on the devices.
    """

    rl: RlConfig
    trainable: Trainable
    sampler: Sampler
    score_rollout: Callable[..., RlBatch]
    compute_advantages: Callable[..., tuple[RlBatch, RlNumbers, dict]]
    update: Callable[[RlState, RlBatch, int, int], tuple[RlState, dict]]
    update_program: Callable[..., tuple[RlState, dict]]
    init: Callable[..., tuple[RlState, RlState]]
    abstract: RlState
