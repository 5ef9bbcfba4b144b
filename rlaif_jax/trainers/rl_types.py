"""The types that the parts of an RL step exchange, with their shapes: rollout, batch, state, and the compiled programs.

Axes: B rows (prompts x group_size), Tp prompt tokens, R response tokens.
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
    """Sampled answers to `prompts` (host arrays): tokens on the devices, texts, and futures of their rewards."""

    prompts: dict[str, np.ndarray]
    decoded: Decoded
    samples: list[Sample]
    rewards: Sequence[Future[RewardResult]]

    def result(self) -> RewardResult:
        """The rewards of all chunks, joined. Blocks until they are ready."""
        return joined([job.result() for job in self.rewards])


RolloutFn = Callable[..., Rollout]


@chex.dataclass(frozen=True, kw_only=True)
class RlBatch:
    """The training batch of policy and critic. Rows are sharded over the mesh. The two scalars are replicated; every micro-batch
    gets them unchanged.

    Attributes:
      tokens, segment_ids, positions: (B, Tp + R) int32, left-padded prompt and response; segment 0 is padding.
      temperature: () float32, the sampling temperature; all log-probs are computed at it.
      old_logprobs: (B, R) float32 nats, of the policy before the updates.
      sampler_logprobs: (B, R) float32, as the sampler computed them; None without `policy.rollout_correction`.
      ref_logprobs: (B, R) float32, of the reference; None without a KL term.
      values: (B, R) float32, of the critic before its updates; None without a critic.
      mask: (B, R) float32, 1 on response tokens of rows with a valid reward. None until `compute_advantages`, as are the
        fields below.
      advantages: (B, R) float32.
      returns: (B, R) float32, the critic's targets; None without a critic.
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
        """Tokens, segments and positions: the inputs of a model."""
        return Sequences(self.tokens, self.segment_ids, self.positions)


class RlNumbers(NamedTuple):
    """The numbers in a state that change without a gradient: the KL coefficient () float32, and the reward statistics (3,)
    float32, which are count, mean and sum of squared deviations of all rewards so far."""

    kl_coefficient: jax.Array
    reward_stats: jax.Array


@chex.dataclass(frozen=True)
class RlState(TrainState):
    """Everything that an RL step changes. All of it except `frozen` is saved in one checkpoint.

    Attributes:
      critic: the critic's state, or None. Its `frozen` is None, since policy and critic share the policy's frozen base.
      reference: trained weights of a reference that is refreshed; None for a fixed reference.
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
    """Full weights of the models that score a rollout; None for a model that is not needed. The policy is needed with a rollout
    correction, the reference with a KL term, the critic for PPO."""

    policy: Any
    reference: Any
    critic: Any


@dataclasses.dataclass(frozen=True)
class RlPrograms:
    """The compiled programs of one RL stage, made by `rl_programs.build`.

    Attributes:
      rl, trainable: the stage's settings, and which weights of policy and critic are trained.
      sampler: see `sampling.sampler.make_sampler`.
      score_rollout: jitted, see `rl.make_score_rollout`.
      compute_advantages: jitted, see `rl.make_compute_advantages`.
      update: (state, batch, seed, step) -> (state, metrics): all updates from one rollout. The state is donated.
      update_program: the jitted function inside `update`: (state without `frozen`, batch, seed, step, frozen).
      init: (policy weights, key, critic weights=None) -> (state, shardings). Policy weights are full and may be donated later.
        Critic weights are the trained ones only; None copies the policy and adds a zero-initialised value head.
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
