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
    """How a stage trains.

    Attributes:
      steps: of the stage; one step of RL is a rollout with all of its updates.
      batch_size: rows per step on all devices together; in RL, prompts.
      grad_accumulation: micro-batches of one update, whose gradients are summed: fewer activations, same result.
      optimizer: the optimizer and its schedule.
      log_every: steps between two lines of metrics.jsonl.
      eval_every: steps between two evaluations on held-out rows; 0 = at every checkpoint. Better is a lower held-out loss (sft),
        a higher accuracy on held-out rows (feedback, reward, grader, dpo), or a higher reward on held-out prompts (rl).
      checkpoint_every: steps between two checkpoints; the last step is always saved.
      max_to_keep: how many of the newest checkpoints are kept, beside the best one.
      select: the checkpoint that later stages get: "last", or "best" of those that were evaluated.
      patience: ends the stage after this many evaluations in a row without a better one; 0 = off.
    """

    steps: int = 1000
    batch_size: int = 64
    grad_accumulation: int = 1
    optimizer: OptimizerConfig = OptimizerConfig()
    log_every: int = 10
    eval_every: int = 0
    checkpoint_every: int = 200
    max_to_keep: int = 2
    select: str = "last"  # last | best
    patience: int = 0

    def __post_init__(self):
        if self.patience < 0:
            raise UserError(f"train.patience is {self.patience}; expected 0 (off) or a number of evaluations")
        for field in ("steps", "batch_size", "grad_accumulation", "log_every", "checkpoint_every", "max_to_keep"):
            if getattr(self, field) < 1:
                raise UserError(f"train.{field} is {getattr(self, field)}; expected at least 1")
        if self.batch_size % self.grad_accumulation:
            raise UserError(f"batch_size {self.batch_size} does not divide into {self.grad_accumulation} micro-batches")
        if self.select not in ("last", "best"):
            raise UserError(f"train.select is {self.select!r}; expected last or best")
        if self.eval_every < 0:
            raise UserError(f"train.eval_every is {self.eval_every}; expected steps, or 0 (at every checkpoint)")
        if self.select == "best" and self.eval_every and self.checkpoint_every % self.eval_every:
            raise UserError(
                f"train.select is best, and checkpoint_every {self.checkpoint_every} is no multiple of eval_every "
                f"{self.eval_every}: the best evaluation would have no checkpoint"
            )


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning; the loss is on the response (EOS included) only.

    Attributes:
      train: see `TrainConfig`.
      max_length: of prompt and response together, in tokens; longer examples are left out and counted.
      packing: several examples in one row, which do not attend to one another.
    """

    train: TrainConfig = TrainConfig()
    max_length: int = 96
    packing: bool = True


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """A scalar model, as reward or as grader: trained here, or loaded from a folder.

    Attributes:
      train: see `TrainConfig`.
      loss: "bradley_terry" on preference pairs, or "binary" on labelled responses.
      init: the weights that it starts from: "sft", "base" (what SFT started from), or "feedback", the embedded feedback model,
        which knows flaws by name already.
      max_length: of prompt and response together, in tokens; a longer answer has an invalid reward.
      center_coef: weight of a penalty that keeps scores around zero (arXiv 2312.09244); 0 = off.
      folder: a Hugging Face reward model (one label) with its own tokenizer, in place of one that is trained here.
    """

    train: TrainConfig = TrainConfig()
    loss: str = "bradley_terry"
    init: str = "sft"  # sft | base | feedback
    max_length: int = 96
    center_coef: float = 0.0
    folder: str = ""

    def __post_init__(self):
        for field, allowed in (("loss", ("bradley_terry", "binary")), ("init", ("sft", "base", "feedback"))):
            if getattr(self, field) not in allowed:
                raise UserError(f"{field} is {getattr(self, field)!r}; expected one of {', '.join(allowed)}")


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """A critic makes it PPO: advantages come from its values by GAE, no group is compared. Defaults are TRL's and verl's.

    Attributes:
      optimizer: the critic's own, with its schedule.
      init: "reward" starts from the reward model, "policy" from the SFT weights with a head of zeros.
      gamma, lam: discount and GAE's lambda.
      value_clip: see `losses.value_loss`; 0 = off.
      whiten: zero mean and unit variance of the advantages over the batch's tokens.
      warmup: for this many first steps only the critic learns.
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
      missing_eos_penalty: taken off where the response did not end (no EOS within the limit).
      overlong_buffer, overlong_penalty: over the last `overlong_buffer` tokens before the limit, a penalty that rises to
        `overlong_penalty` (DAPO).
      normalise: subtract the running mean of all rewards so far and divide by their standard deviation.
      clip: then bound the reward to +-clip; 0 = off.
    """

    missing_eos_penalty: float = 1.0
    overlong_buffer: int = 0
    overlong_penalty: float = 1.0
    normalise: bool = False
    clip: float = 0.0


@dataclasses.dataclass(frozen=True)
class RlConfig:
    """RL against a reward: GRPO and its family, or PPO where it has a critic. docs/algorithms.md says which option is whose, and
    when to choose which.

    Attributes:
      train: see `TrainConfig`; `train.batch_size` counts prompts.
      group_size: samples of each prompt.
      advantage: advantages without a critic.
      policy: the policy's loss.
      kl: the KL penalty.
      critic: the critic of PPO; None: no critic.
      shaping: what happens to a reward before advantages are computed.
      sampling: how responses are sampled in training.
      max_prompt_tokens: longer prompts are left out and counted.
      num_epochs, num_minibatches: passes over each rollout, and optimizer updates per pass, over shuffled rows.
      kl_early_stop: the updates of a step end early once the policy's KL from the one that sampled exceeds this; 0 = off.
      max_resamples: dynamic sampling: groups whose rewards are all equal are replaced from further prompts, in at most this many
        further batches a step (DAPO, arXiv 2503.14476); 0 = off.
      offload_optimizer, offload_reference: keep the optimizer states (policy and critic), or the reference's weights, in the
        host's memory; they are on the devices only for the updates, or for the reference's log-probs.
      rollout_chunks: parts of a rollout; each is rewarded while the next is sampled, which pays where the reward comes from a chat
        API. Samples and rewards stay the same.
      eval_prompts: prompts kept out of training, on which the reward is evaluated.
      samples_every: steps between two tables of samples (samples.jsonl).
      max_invalid_rewards: the run stops where a larger share of a batch is invalid.
    """

    train: TrainConfig = TrainConfig(batch_size=32)
    group_size: int = 4
    advantage: AdvantageConfig = AdvantageConfig()
    policy: PolicyConfig = PolicyConfig()
    kl: KlConfig = KlConfig()
    critic: CriticConfig | None = None
    shaping: ShapingConfig = ShapingConfig()
    sampling: SamplingConfig = SamplingConfig()
    max_prompt_tokens: int = 48
    num_epochs: int = 1
    num_minibatches: int = 2
    kl_early_stop: float = 0.0
    max_resamples: int = 0
    rollout_chunks: int = 1
    offload_optimizer: bool = False
    offload_reference: bool = False
    eval_prompts: int = 64
    samples_every: int = 20
    max_invalid_rewards: float = 0.2

    def __post_init__(self):
        for field in ("group_size", "num_epochs", "num_minibatches", "rollout_chunks"):
            if getattr(self, field) < 1:
                raise UserError(f"rl.{field} is {getattr(self, field)}; expected at least 1")
        rows = self.train.batch_size * self.group_size
        if rows % (self.num_minibatches * self.train.grad_accumulation):
            raise UserError(
                f"rl: {rows} samples do not divide into {self.num_minibatches} minibatches of {self.train.grad_accumulation} "
                "micro-batches"
            )
        if self.train.batch_size % self.rollout_chunks:
            raise UserError(f"rl: {self.train.batch_size} prompts do not divide into {self.rollout_chunks} rollout_chunks")
        if self.critic is None and self.group_size < 2 and self.advantage.baseline != "none":
            raise UserError(f"rl.group_size is {self.group_size}; without a critic samples are compared in groups of at least 2")
        if self.offload_reference and (not self.kl.active or self.kl.refreshed):
            raise UserError("rl.offload_reference: with kl.coef 0 or kl.ref_sync_steps there is no reference that stays as it is")
        if self.shaping.overlong_buffer >= self.sampling.max_tokens:
            raise UserError("rl.shaping.overlong_buffer must be shorter than rl.sampling.max_tokens")

    @property
    def updates(self) -> int:
        """Optimiser steps of the whole stage."""
        return self.train.steps * self.num_epochs * self.num_minibatches


@dataclasses.dataclass(frozen=True)
class DpoConfig:
    """Preference training without RL, on the reward model's pairs, from the SFT policy: the baseline for every arm.

    Attributes:
      train: see `TrainConfig`.
      loss: "sigmoid" (DPO) or "ipo", see `losses.preference`.
      beta: strength of the pull towards the reference (the SFT policy).
      label_smoothing: the share of labels taken to be wrong (sigmoid only).
      max_length: of prompt and response together, in tokens; longer pairs are left out and counted.
    """

    train: TrainConfig = TrainConfig()
    loss: str = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    max_length: int = 96

    def __post_init__(self):
        if self.loss not in ("sigmoid", "ipo"):
            raise UserError(f"dpo.loss is {self.loss!r}; expected sigmoid or ipo")
        if self.beta <= 0:
            raise UserError(f"dpo.beta is {self.beta}; expected more than 0")
