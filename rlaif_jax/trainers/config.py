"""The settings of the training stages: nested frozen dataclasses, parts of `config.RunConfig`."""

from __future__ import annotations

import dataclasses

from rlaif_jax.algorithms.advantages import AdvantageConfig
from rlaif_jax.algorithms.kl import KlConfig
from rlaif_jax.algorithms.policy import PolicyConfig
from rlaif_jax.errors import UserError
from rlaif_jax.sampling.filters import SamplingConfig
from rlaif_jax.trainers.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training stage.

    Every `checkpoint_every` steps it evaluates and saves; `select` is the checkpoint handed on. With `patience` the stage
    ends early, after so many evaluations in a row that were no better than the best before them (0: it runs all steps).
    Better is a lower held-out loss (sft), a higher accuracy on held-out rows (feedback, reward, grader, dpo), or a higher
    reward on held-out prompts (rl).
    """

    steps: int = 1000
    batch_size: int = 64
    accumulation: int = 1
    optimizer: OptimizerConfig = OptimizerConfig()
    log_every: int = 10
    checkpoint_every: int = 200
    keep_last: int = 2
    select: str = "last"  # last | best
    patience: int = 0

    def __post_init__(self):
        if self.patience < 0:
            raise UserError(f"train.patience is {self.patience}; expected 0 (off) or a number of evaluations")
        for field in ("steps", "batch_size", "accumulation", "log_every", "checkpoint_every", "keep_last"):
            if getattr(self, field) < 1:
                raise UserError(f"train.{field} is {getattr(self, field)}; expected at least 1")
        if self.batch_size % self.accumulation:
            raise UserError(f"batch_size {self.batch_size} does not divide into {self.accumulation} micro-batches")
        if self.select not in ("last", "best"):
            raise UserError(f"train.select is {self.select!r}; expected last or best")


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning; the loss is on the response (EOS included) only."""

    train: TrainConfig = TrainConfig()
    max_length: int = 96
    packing: bool = True


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """A scalar model: "bradley_terry" on pairs, or "binary" on labelled responses. Starts from the SFT policy, from
    what SFT started from (base), or from the embedded feedback model, which knows flaws by name already.

    `folder`: a Hugging Face reward model (one label) with its own tokenizer, in place of one that is trained here.
    """

    train: TrainConfig = TrainConfig()
    loss: str = "bradley_terry"
    init: str = "sft"  # sft | base | feedback
    max_length: int = 96
    centring: float = 0.0
    folder: str = ""

    def __post_init__(self):
        for field, allowed in (("loss", ("bradley_terry", "binary")), ("init", ("sft", "base", "feedback"))):
            if getattr(self, field) not in allowed:
                raise UserError(f"{field} is {getattr(self, field)!r}; expected one of {', '.join(allowed)}")


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """A critic makes it PPO: advantages come from its values by GAE, no group is compared. Defaults are TRL's and verl's.

    Attributes:
      optimizer: the critic's own.
      init: "reward" starts from the reward model, "policy" from the SFT weights with a head of zeros.
      gamma, lam: discount and GAE's lambda.
      value_clip: see `losses.value_loss`; 0 = off.
      whiten: zero mean and unit variance of the advantages over the batch's tokens.
      warmup: for so many first steps only the critic learns.
    """

    optimizer: OptimizerConfig = OptimizerConfig(1e-5, "constant")
    init: str = "reward"
    gamma: float = 1.0
    lam: float = 0.95
    value_clip: float = 0.2
    whiten: bool = True
    warmup: int = 0

    def __post_init__(self):
        if self.init not in ("reward", "policy"):
            raise UserError(f"critic.init is {self.init!r}; expected reward or policy")
        for field in ("gamma", "lam"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(f"critic.{field} is {getattr(self, field)}; expected a number in [0, 1]")


@dataclasses.dataclass(frozen=True)
class ShapingConfig:
    """What becomes of a response's reward before advantages are computed, in this order.

    Attributes:
      unfinished_penalty: taken off where the response did not end (no EOS within the limit).
      overlong_buffer, overlong_penalty: over the last so many tokens before the limit, a penalty that rises to this (DAPO).
      normalise: subtract the running mean of all rewards so far and divide by their standard deviation.
      clip: then bound the reward to +-clip; 0 = off.
    """

    unfinished_penalty: float = 1.0
    overlong_buffer: int = 0
    overlong_penalty: float = 1.0
    normalise: bool = False
    clip: float = 0.0


@dataclasses.dataclass(frozen=True)
class RlConfig:
    """RL against a reward. `train.batch_size` counts prompts; each gets `group` samples.

    Without a critic this is GRPO and its family (`advantage`, `policy`, `kl`), with one it is PPO. docs/algorithms.md tells
    which option is whose, and when to choose which.

    Attributes:
      epochs, minibatches: a rollout is used for so many passes over so many shuffled updates each.
      kl_stop: the updates of a step end early once the policy's KL from the one that sampled exceeds this; 0 = off.
      refills: dynamic sampling: groups without signal are replaced from further prompts, at most so many times a step
        (DAPO, arXiv 2503.14476).
      offload_optimizer, offload_reference: the optimisers' states (policy and critic), and the reference's weights, wait in
        the host's memory and are on the devices only for the updates, or for the reference's log-probs.
      rollout_chunks: a rollout is sampled in so many parts, and each is rewarded while the next is sampled: worth it
        where the reward waits for a chat API. Samples and rewards stay the same.
      eval_prompts: so many of the prompts are kept apart to watch the reward on.
      max_lost_rewards: stop if a larger share of a batch has no verdict.
    """

    train: TrainConfig = TrainConfig(batch_size=32)
    group: int = 4
    advantage: AdvantageConfig = AdvantageConfig()
    policy: PolicyConfig = PolicyConfig()
    kl: KlConfig = KlConfig()
    critic: CriticConfig | None = None
    shaping: ShapingConfig = ShapingConfig()
    sampling: SamplingConfig = SamplingConfig()
    max_prompt: int = 48
    epochs: int = 1
    minibatches: int = 2
    kl_stop: float = 0.0
    refills: int = 0
    rollout_chunks: int = 1
    offload_optimizer: bool = False
    offload_reference: bool = False
    eval_prompts: int = 64
    samples_every: int = 20
    max_lost_rewards: float = 0.2

    def __post_init__(self):
        for field in ("group", "epochs", "minibatches", "rollout_chunks"):
            if getattr(self, field) < 1:
                raise UserError(f"rl.{field} is {getattr(self, field)}; expected at least 1")
        rows = self.train.batch_size * self.group
        if rows % (self.minibatches * self.train.accumulation):
            raise UserError(
                f"rl: {rows} samples do not divide into {self.minibatches} minibatches of {self.train.accumulation} micro-batches"
            )
        if self.train.batch_size % self.rollout_chunks:
            raise UserError(f"rl: {self.train.batch_size} prompts do not divide into {self.rollout_chunks} rollout_chunks")
        if self.critic is None and self.group < 2 and self.advantage.baseline != "none":
            raise UserError(f"rl.group is {self.group}; without a critic a group of at least 2 is needed to compare samples")
        if self.offload_reference and (not self.kl.active or self.kl.refreshed):
            raise UserError("rl.offload_reference: with kl.coefficient 0 or kl.refresh there is no reference that stays as it is")
        if self.shaping.overlong_buffer >= self.sampling.max_tokens:
            raise UserError("rl.shaping.overlong_buffer must be shorter than rl.sampling.max_tokens")

    @property
    def updates(self) -> int:
        """Optimiser steps of the whole stage."""
        return self.train.steps * self.epochs * self.minibatches


@dataclasses.dataclass(frozen=True)
class DpoConfig:
    """Preference training without RL, on the reward model's pairs, from the SFT policy: the baseline for both arms.

    Attributes:
      loss: "sigmoid" (DPO) or "ipo", see `losses.preference`.
      beta: how dear it is to leave the reference.
      smoothing: the share of labels taken to be wrong (sigmoid only).
    """

    train: TrainConfig = TrainConfig()
    loss: str = "sigmoid"
    beta: float = 0.1
    smoothing: float = 0.0
    max_length: int = 96

    def __post_init__(self):
        if self.loss not in ("sigmoid", "ipo"):
            raise UserError(f"dpo.loss is {self.loss!r}; expected sigmoid or ipo")
        if self.beta <= 0:
            raise UserError(f"dpo.beta is {self.beta}; expected more than 0")
