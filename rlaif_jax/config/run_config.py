"""The configuration of one run: all of its sections, and what they demand of one another."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from rlaif_jax.config.sections import (
    ArmConfig,
    DataConfig,
    EvaluationConfig,
    FeedbackConfig,
    JudgeConfig,
    LoggingConfig,
    TokenizerConfig,
)
from rlaif_jax.errors import UserError, holds_secret
from rlaif_jax.feedback.curate import CurateConfig
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.ranges import Seed, check_fields
from rlaif_jax.sharding.mesh import MeshConfig
from rlaif_jax.trainers.config import DpoConfig, RewardConfig, RlConfig, SftConfig

RESERVED = {"base", "best_of", "corpus", "report", "replies"}  # systems and files of every run, which no arm may be called


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One experiment: tokenizer -> SFT -> [feedback model -> curated pairs ->] [reward model] [-> independent grader]
    [-> judge's principles] [-> DPO] -> RL, once for each arm -> evaluation.

    A section that is None is left out. Without `sft`, later stages start from `model.init_from`.

    Attributes:
      name: name of the run; its folder is runs/NAME unless --out names another.
      seed: the seed of all random numbers.
      data: the data files.
      tokenizer: the tokenizer.
      model: shapes and numerics of the policy, or the folder that it starts from.
      mesh: the device mesh; each start of a run may use another one.
      sft: supervised fine-tuning; None: no SFT.
      grader: a scalar model for evaluation only; None: no grader.
      feedback: the model that gives AI feedback; None: no AI feedback.
      curate: arm A's curation of preference pairs; None: the data's pairs alone.
      judge: the judge and the game that optimises its principles; None: no judge.
      dpo: preference training without RL, as a baseline; None: no such stage.
      evaluation: the held-out comparison.
      logging: where metrics are written, beside the run folder.
      language: language of the task: "zh", "en", or "auto" (by the script of its texts). Prompts of the feedback model, rules and
        text metrics follow it.
      reward: the reward model; None for a run whose arms use none.
      rl: settings of RL for every arm that has none of its own.
      arms: name -> `ArmConfig`. Empty: the arm "rl" against the reward model where there is one, and the arm "rl_judge" against
        the judge where there is one.
      lora: every stage trains an adapter over the frozen weights that it starts from; the next stage starts from their sum. In
        RL, policy, KL reference, critic and reward model (`reward.init` sft) share one copy of the base.
    """

    name: str = "run"
    seed: Seed = 0
    language: str = "auto"
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    mesh: MeshConfig = MeshConfig()
    sft: SftConfig | None = SftConfig()
    reward: RewardConfig | None = RewardConfig()
    grader: RewardConfig | None = None
    feedback: FeedbackConfig | None = None
    curate: CurateConfig | None = None
    judge: JudgeConfig | None = None
    dpo: DpoConfig | None = None
    lora: LoraConfig | None = None
    rl: RlConfig = RlConfig()
    arms: dict[str, ArmConfig] = dataclasses.field(default_factory=dict)
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()

    def __post_init__(self):
        check_fields(self)
        if self.language not in ("auto", "zh", "en"):
            raise UserError(f"language is {self.language!r}; expected auto, zh or en")
        for field in ("curate", "judge"):
            if getattr(self, field) is not None and self.feedback is None:
                raise UserError(f"{field} is set, but feedback is not: set the section `feedback`, which says what model gives it")
        if self.sft is None and not self.model.start:
            raise UserError("sft is None and model.init_from is empty: there is no policy to start from")
        if self.tokenizer.path and self.model.start:
            raise UserError("tokenizer.path is set beside model.init_from, whose tokenizer is used; leave it empty")
        if self.embedded_feedback and self.judge is None:
            raise UserError("the embedded feedback model needs a judge section: it learns lists of at most game.limit rules")
        for field in ("reward", "grader"):
            if getattr(self, field) is not None and getattr(self, field).init == "feedback" and not self.embedded_feedback:
                raise UserError(f"{field}.init is feedback, but the run trains no feedback model (feedback.backend embedded)")
        if self.curate is not None and self.reward is None and self.dpo is None:
            raise UserError("curate is set, but neither reward nor dpo learns from its pairs; set one of them or curate=none")
        if self.evaluation.best_of > 1 and self.reward is None:
            raise UserError("evaluation.best_of chooses by the reward model, and reward is None; set evaluation.best_of=0")
        self._check_graders()
        self._check_names()
        for name in self.all_arms():
            self._check_arm(name)
        _check_secrets(self)

    def _check_graders(self) -> None:
        """UserError for a grader that would learn from an arm's own data."""
        grader, data, reward = self.grader, self.data, self.reward
        own = self.dpo is not None or (reward is not None and not reward.folder and reward.loss == "bradley_terry")
        if grader is not None and not grader.folder and grader.loss == "bradley_terry" and own and not data.grader_share:
            raise UserError(
                "grader.loss is bradley_terry and data.grader_share is 0: the grader would learn from the reward model's own pairs "
                "and is not independent. Set data.grader_share=0.3 (a share of the pairs that the reward model then does not get), "
                "or grader.loss=binary (it learns from the labelled answers)"
            )

    def _check_names(self) -> None:
        """UserError for an arm's name that cannot be a folder and a system, and for one name of two functions."""
        found: dict[str, tuple[str, Any]] = {}
        for name, arm in self.arms.items():
            if not re.fullmatch(r"\w[\w-]*", name) or name in RESERVED:
                raise UserError(
                    f"arms: {name!r} cannot be the name of an arm, which is also a folder; use letters, digits, - and _, "
                    f"and none of {', '.join(sorted(RESERVED))}"
                )
            for function, cfg in arm.functions.items():
                first, other = found.setdefault(function, (name, cfg.function))
                if other != cfg.function:
                    raise UserError(
                        f"arms.{name}.functions.{function} and arms.{first}.functions.{function} are two functions with one name; "
                        "call one of them something else, so that the report can show both"
                    )

    def _check_arm(self, name: str) -> None:
        """UserError where an arm asks for what the run does not have."""
        arm, rl = self.all_arms()[name], self.rl_of(name)
        for source in ("reward_model", "judge"):
            section = {"reward_model": "reward"}.get(source, source)
            if getattr(arm, source) and getattr(self, section) is None:
                weight = getattr(arm, source)
                raise UserError(f"arms.{name}.{source} is {weight}, but {section} is None: set that section")
        if arm.judge and self.judge is not None and self.judge.mode == "pairwise" and rl.group_size < 2:
            raise UserError(
                f"arms.{name}: judge.mode is pairwise, which compares the answers of a group, and group_size is {rl.group_size}; "
                "set rl.group_size to at least 2"
            )
        quantised = not self.model.rollout_quant == self.model.kv_cache == "float"
        if quantised and rl.policy.rollout_correction == "none":
            raise UserError(
                "with model.rollout_quant or model.kv_cache in int8 the sampler is not quite the policy: set "
                "rl.policy.rollout_correction, for example to token_truncate"
            )
        if self.lora is not None and rl.offload_reference:
            raise UserError("rl.offload_reference: under lora the policy's own base is the reference; set it to false")
        if rl.critic is not None and rl.critic.init == "reward":
            self._check_critic_start()
        self._check_relative_reward(name)

    def _check_relative_reward(self, name: str) -> None:
        """UserError where a reward is relative to other answers, and a setting needs one that is not."""
        arm, rl = self.all_arms()[name], self.rl_of(name)
        chooses = [f"rl.train.patience={rl.train.patience}"] if rl.train.patience else []
        chooses += ["rl.train.select=best"] if rl.train.select == "best" else []
        if arm.judge and self.judge is not None and self.judge.mode == "pairwise" and chooses:
            raise UserError(
                f"arms.{name}: judge.mode is pairwise, so the held-out reward is a share of wins within a group, 0.5 on average "
                f"for every policy, and {' and '.join(chooses)} would decide by chance; take them out, or set judge.mode=soft"
            )
        if arm.rules.normalise != "batch":
            return
        if chooses:
            raise UserError(
                f"arms.{name}: rules.normalise is batch, so the held-out reward is 0 on average for every policy, and "
                f"{' and '.join(chooses)} would decide by chance; take them out, or set rules.normalise=none"
            )
        for field in ("rollout_chunks", "max_resamples"):
            if getattr(rl, field) > {"rollout_chunks": 1, "max_resamples": 0}[field]:
                raise UserError(
                    f"arms.{name}: rules.normalise is batch, and with rl.{field}={getattr(rl, field)} a step has several batches "
                    f"of rewards, each normalised by itself; set rules.normalise=none, or rl.{field} to its default"
                )

    def _check_critic_start(self) -> None:
        """A critic that starts from the reward model needs one of this run, and with adapters one over the policy's base."""
        if self.reward is None:
            raise UserError("rl.critic.init is reward, but reward is None: set rl.critic.init=policy")
        if self.reward.folder:
            raise UserError("rl.critic.init is reward, but the reward model is that of reward.folder: set rl.critic.init=policy")
        if self.lora is not None and not self.shares_base(self.reward):
            raise UserError(
                "lora: a critic that starts from the reward model shares the policy's base, and with "
                f"reward.init={self.reward.init} the reward model has another: set reward.init=sft, or rl.critic.init=policy"
            )

    @property
    def embedded_feedback(self) -> bool:
        """Whether the run trains its own feedback model."""
        return self.feedback is not None and self.feedback.backend == "embedded"

    def shares_base(self, scalar: RewardConfig) -> bool:
        """Whether a reward model's or grader's adapter is over the same weights as that of RL, which are then held once."""
        started = scalar.init == "sft" or (self.sft is None and scalar.init == "base")
        return self.lora is not None and not scalar.folder and started

    def all_arms(self) -> dict[str, ArmConfig]:
        """The arms by name, as given, or those that the sections `reward` and `judge` imply."""
        if self.arms:
            return self.arms
        implied = {"rl": (self.reward, ArmConfig(reward_model=1.0)), "rl_judge": (self.judge, ArmConfig(judge=1.0))}
        return {name: arm for name, (section, arm) in implied.items() if section is not None}

    def rl_of(self, name: str) -> RlConfig:
        """The RL settings of an arm."""
        arm = self.all_arms().get(name)
        return self.rl if arm is None or arm.rl is None else arm.rl

    @property
    def debated_prompts(self) -> int:
        """Prompts whose answers the evaluation debates; none without a feedback model."""
        return 0 if self.feedback is None else self.evaluation.debate

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the longest prompt that is sampled from: the largest limit of all arms."""
        return max([self.rl_of(name).max_prompt_tokens for name in self.all_arms()], default=self.rl.max_prompt_tokens)


def _check_secrets(value: Any, path: str = "") -> None:
    """UserError for a field that holds a key or a password: a config is written into run folders and model cards."""
    if isinstance(value, str) and holds_secret(value):
        raise UserError(
            f"{path} looks like a key or password (not shown here), and a config is saved in clear text: put it into an "
            "environment variable, and name that variable in feedback.http.key_variable"
        )
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    inner = {f.name: getattr(value, f.name) for f in fields} if fields else value if isinstance(value, Mapping) else {}
    for name, child in inner.items():
        _check_secrets(str(name), f"the name of an entry of {path}")
        _check_secrets(child, f"{path}.{name}".lstrip("."))
