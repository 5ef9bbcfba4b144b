"""Config sections of the training stages: frozen dataclasses, each a field of `config.RunConfig`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from rlaif_jax.algorithms.advantages import AdvantageConfig
from rlaif_jax.algorithms.kl import KlConfig
from rlaif_jax.algorithms.policy import PolicyConfig
from rlaif_jax.errors import UserError
from rlaif_jax.ranges import Count, CountOrZero, Positive, Range, Share, Tokens, Weight, check_fields
from rlaif_jax.sampling.filters import SamplingConfig
from rlaif_jax.trainers.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a stage trains.

    Attributes:
      steps: number of steps. In RL, one step is one rollout and all updates from it.
      batch_size: rows per step, over all devices. In RL, prompts per step.
      grad_accumulation: micro-batches per update. Their gradients are summed, so activations need less memory and the result is the
        same.
      optimizer: the optimizer and its learning-rate schedule.
      log_every: steps between lines of metrics.jsonl.
      eval_every: steps between evaluations on held-out data; 0 = evaluate at every checkpoint. The score is the held-out loss (sft,
        lower is better), held-out accuracy (feedback, reward, grader, dpo), or the reward on held-out prompts (rl).
      checkpoint_every: steps between checkpoints. The last step is always saved.
      max_to_keep: number of newest checkpoints to keep. The best one is kept as well.
      select: the checkpoint that later stages use: "last", or "best" by the evaluation score.
      patience: stop the stage after this many evaluations in a row without a new best score; 0 = never.
    """

    steps: Count = 1000
    batch_size: Annotated[int, Range(1, 2**20)] = 64
    grad_accumulation: Annotated[int, Range(1, 2**20)] = 1
    optimizer: OptimizerConfig = OptimizerConfig()
    log_every: Count = 10
    eval_every: CountOrZero = 0
    checkpoint_every: Count = 200
    max_to_keep: Count = 2
    select: str = "last"  # last | best
    patience: CountOrZero = 0

    def __post_init__(self):
        check_fields(self)
        if self.batch_size % self.grad_accumulation:
            raise UserError(f"batch_size {self.batch_size} is not a multiple of grad_accumulation {self.grad_accumulation}")
        if self.select not in ("last", "best"):
            raise UserError(f"train.select is {self.select!r}; expected last or best")
        if self.select == "best" and self.eval_every and self.checkpoint_every % self.eval_every:
            raise UserError(
                f"with train.select best, checkpoint_every {self.checkpoint_every} must be a multiple of eval_every "
                f"{self.eval_every}; else the best evaluation may have no checkpoint"
            )


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning. Only response tokens (EOS included) count in the loss.

    Attributes:
      train: steps, batch size, optimizer, checkpoints.
      max_length: limit on prompt plus response, in tokens. Longer examples are dropped, and their number is logged.
      packing: put several examples into one row; they do not attend to each other.
    """

    train: TrainConfig = TrainConfig()
    max_length: Tokens = 96
    packing: bool = True

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """A reward model or a grader: a model with a scalar head, trained by the run or loaded from a folder.

    Attributes:
      train: steps, batch size, optimizer, checkpoints.
      loss: "bradley_terry" on preference pairs, or "binary" on labelled responses.
      init: initial weights: "sft", "base" (the model that SFT starts from), or "feedback" (the embedded feedback model, which has
        already learned to recognise flaws).
      max_length: limit on prompt plus response in training, in tokens. Longer rows are dropped, and their number is logged. Every
        answer that the run samples is scored, however long.
      center_coef: weight of a penalty that keeps scores centred on zero (arXiv 2312.09244); 0 = off.
      folder: folder of a Hugging Face reward model (one label) with its own tokenizer. It is loaded, and none is trained.
    """

    train: TrainConfig = TrainConfig()
    loss: str = "bradley_terry"
    init: str = "sft"  # sft | base | feedback
    max_length: Tokens = 96
    center_coef: Weight = 0.0
    folder: str = ""

    def __post_init__(self):
        check_fields(self)
        for field, allowed in (("loss", ("bradley_terry", "binary")), ("init", ("sft", "base", "feedback"))):
            if getattr(self, field) not in allowed:
                raise UserError(f"{field} is {getattr(self, field)!r}; expected one of {', '.join(allowed)}")


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The critic of PPO: advantages are computed by GAE from its values, not within groups. The defaults are those of TRL and verl.

    Attributes:
      optimizer: the critic's optimizer and learning-rate schedule.
      init: initial weights: "reward" (the reward model), or "policy" (the SFT weights with a zero-initialised value head).
      gamma, lam: discount factor, and lambda of GAE.
      value_clip: clip range of the value loss (see `losses.value_loss`); 0 = off.
      whiten: normalise advantages to zero mean and unit variance over the tokens of the batch.
      warmup: number of first steps in which only the critic is trained.
    """

    optimizer: OptimizerConfig = OptimizerConfig(1e-5, "constant")
    init: str = "reward"
    gamma: Share = 1.0
    lam: Share = 0.95
    value_clip: Weight = 0.2
    whiten: bool = True
    warmup: CountOrZero = 0

    def __post_init__(self):
        check_fields(self)
        if self.init not in ("reward", "policy"):
            raise UserError(f"critic.init is {self.init!r}; expected reward or policy")


@dataclasses.dataclass(frozen=True)
class ShapingConfig:
    """How rewards are changed before advantages are computed, in this order.

    Attributes:
      missing_eos_penalty: subtracted from the reward of a response that has no EOS within the token limit.
      overlong_buffer, overlong_penalty: penalty for long responses (DAPO). It rises linearly from 0 to `overlong_penalty` over the
        last `overlong_buffer` tokens before the limit.
      normalise: subtract the running mean of all rewards so far and divide by their standard deviation.
      clip: clip the reward to [-clip, clip], after normalisation; 0 = off.
    """

    missing_eos_penalty: Weight = 1.0
    overlong_buffer: CountOrZero = 0
    overlong_penalty: Weight = 1.0
    normalise: bool = False
    clip: Weight = 0.0

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class RlConfig:
    """RL on a reward: the GRPO family, or PPO if `critic` is set. docs/algorithms.md explains the options and when to use each.

    Attributes:
      train: steps, batch size (in prompts), optimizer, checkpoints.
      group_size: responses sampled per prompt.
      advantage: how advantages are computed without a critic.
      policy: the policy loss.
      kl: the KL penalty.
      critic: the critic of PPO; None: no critic (GRPO family).
      shaping: how rewards are changed before advantages are computed.
      sampling: how responses are sampled in training.
      max_prompt_tokens: longer prompts are dropped, and their number is logged.
      num_epochs: passes over each rollout.
      num_minibatches: optimizer updates per pass. The rows are shuffled before each pass.
      kl_early_stop: skip the remaining policy updates of a step once the KL between the policy and the one that sampled exceeds
        this; 0 = off.
      max_resamples: dynamic sampling (DAPO, arXiv 2503.14476): groups with equal rewards are replaced by groups of new prompts.
        This is the largest number of extra prompt batches per step; 0 = off.
      rollout_chunks: split each rollout into this many chunks. A chunk is scored while the next is sampled, which saves time if
        the reward comes from a chat API. Samples and rewards do not change.
      offload_optimizer: keep the optimizer states of policy and critic in host memory, except during the updates.
      offload_reference: keep the reference weights in host memory, except while reference log-probs are computed.
      eval_prompts: number of prompts held out from training to evaluate the reward.
      samples_every: steps between samples written to samples.jsonl and shown.
      max_invalid_rewards: stop the run if a larger share of a batch's rewards is invalid.
    """

    train: TrainConfig = TrainConfig(batch_size=32)
    group_size: Annotated[int, Range(1, 2**16)] = 4
    advantage: AdvantageConfig = AdvantageConfig()
    policy: PolicyConfig = PolicyConfig()
    kl: KlConfig = KlConfig()
    critic: CriticConfig | None = None
    shaping: ShapingConfig = ShapingConfig()
    sampling: SamplingConfig = SamplingConfig()
    max_prompt_tokens: Tokens = 48
    num_epochs: Annotated[int, Range(1, 1000)] = 1
    num_minibatches: Annotated[int, Range(1, 2**20)] = 2
    kl_early_stop: Weight = 0.0
    max_resamples: Annotated[int, Range(0, 1000)] = 0
    rollout_chunks: Annotated[int, Range(1, 2**20)] = 1
    offload_optimizer: bool = False
    offload_reference: bool = False
    eval_prompts: CountOrZero = 64
    samples_every: Count = 20
    max_invalid_rewards: Share = 0.2

    def __post_init__(self):
        check_fields(self)
        rows = self.train.batch_size * self.group_size
        if rows % (self.num_minibatches * self.train.grad_accumulation):
            raise UserError(
                f"rl: {rows} samples per step cannot be split into {self.num_minibatches} minibatches of "
                f"{self.train.grad_accumulation} micro-batches"
            )
        if self.train.batch_size % self.rollout_chunks:
            raise UserError(f"rl: {self.train.batch_size} prompts cannot be split into {self.rollout_chunks} rollout_chunks")
        if self.critic is None and self.group_size < 2 and self.advantage.baseline != "none":
            raise UserError(f"rl.group_size is {self.group_size}; without a critic it must be at least 2")
        if self.group_size < 2 and self.max_resamples:
            raise UserError("RlConfig.max_resamples replaces groups of equal rewards: expected 0, or a group_size of at least 2")
        if self.sampling.temperature == 0:
            raise UserError("RlConfig.sampling.temperature is 0: all samples of a prompt would be equal; expected more, as 1")
        if self.offload_reference and (not self.kl.active or self.kl.refreshed):
            raise UserError("rl.offload_reference needs a fixed reference: kl.coef above 0, and kl.ref_sync_steps 0")
        if self.shaping.overlong_buffer >= self.sampling.max_tokens:
            raise UserError("rl.shaping.overlong_buffer must be shorter than rl.sampling.max_tokens")

    @property
    def updates(self) -> int:
        """Optimizer updates of the whole stage."""
        return self.train.steps * self.num_epochs * self.num_minibatches


@dataclasses.dataclass(frozen=True)
class DpoConfig:
    """DPO: trains the SFT policy on the preference pairs, without RL. It is the baseline for every arm.

    Attributes:
      train: steps, batch size, optimizer, checkpoints.
      loss: "sigmoid" (DPO) or "ipo", see `losses.preference`.
      beta: strength of the penalty for leaving the reference (the SFT policy).
      label_smoothing: assumed share of wrong labels (sigmoid only).
      max_length: limit on prompt plus response, in tokens. Longer pairs are dropped, and their number is logged.
    """

    train: TrainConfig = TrainConfig()
    loss: str = "sigmoid"
    beta: Positive = 0.1
    label_smoothing: Annotated[float, Range(0, 0.5, below=True)] = 0.0
    max_length: Tokens = 96

    def __post_init__(self):
        check_fields(self)
        if self.loss not in ("sigmoid", "ipo"):
            raise UserError(f"dpo.loss is {self.loss!r}; expected sigmoid or ipo")
