"""The typed configuration of one run: nested frozen dataclasses, loaded from a Python file, changed with `--set a.b=c`."""

from __future__ import annotations

import dataclasses
import importlib.resources
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from rlaif_jax.config_values import from_dict, overridden
from rlaif_jax.data.corpus.build import CorpusConfig
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.adversarial import GameConfig
from rlaif_jax.feedback.curate import CurateConfig
from rlaif_jax.feedback.openai_llm import HttpConfig
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.models.model_config import ModelConfig, preset
from rlaif_jax.rewards.rules import RuleConfig
from rlaif_jax.sampling.filters import SamplingConfig
from rlaif_jax.sharding.mesh import MeshConfig
from rlaif_jax.trainers.settings import (
    DpoConfig,
    RewardConfig,
    RlConfig,
    SftConfig,
    TrainConfig,
)


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One data file: `path` relative to `data.root` (or "tfds:FOLDER"); `columns` maps record fields to its columns."""

    path: str = ""
    format: str = "auto"  # auto | sharegpt_pairs | alpaca | verl | labelled
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    prefix: str = ""  # put before every prompt
    limit: int = 0  # 0 = all
    on_error: str = "raise"  # raise | skip (counted and reported)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where records come from. An empty `root` writes the bundled corpus into the run and reads it from there."""

    root: str = ""
    corpus: CorpusConfig = CorpusConfig()
    sft: SourceConfig = SourceConfig("sft.jsonl")
    sft_eval: SourceConfig = SourceConfig("sft_val.jsonl")
    pairs: SourceConfig = SourceConfig("pairs_train.jsonl")
    pairs_eval: SourceConfig = SourceConfig("pairs_test.jsonl")
    labelled: SourceConfig = SourceConfig("labelled_train.jsonl")
    labelled_val: SourceConfig = SourceConfig("labelled_val.jsonl")  # the gate of the judge's game
    labelled_eval: SourceConfig = SourceConfig("labelled_test.jsonl")
    prompts: SourceConfig = SourceConfig("prompts.jsonl")
    eval_prompts: SourceConfig = SourceConfig("eval_prompts.jsonl")
    eval_fraction: float = 0.05  # held out of a file whose *_eval path is empty
    grader_share: float = 0.0  # of the pairs' prompts, kept from the reward model and given to the grader

    def __post_init__(self):
        for field in ("eval_fraction", "grader_share"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"data.{field} is {getattr(self, field)}; expected a share in [0, 1)")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """`path`: a Hugging Face tokenizer folder; empty: train a byte-level BPE of `vocab_size` on the run's own texts."""

    path: str = ""
    vocab_size: int = 2048


@dataclasses.dataclass(frozen=True)
class FeedbackConfig:
    """Who gives the AI feedback.

    Attributes:
      backend: "embedded" (a model that the run trains on `transcripts` of every role, written by the bundled corpus, or
        on labelled responses of the data), "folder" (the Hugging Face model in the folder `model`, with its own tokenizer
        and template), "http" (a chat API) or "recorded" (the replies in `transcript`).
      prompts: a family of prompt files (zh, en, embedded) or a folder; empty: embedded for that backend, else zh.
      train, max_length, source: how the embedded model is trained; source is corpus | labelled. A step takes
        `train.batch_size` rows of packed transcripts of up to `max_length` tokens, and `pair_batch_size` pairs of a good and
        a flawed answer, each with all questions about it in up to `pair_max_length` tokens (0 = the same); what is longer
        is left out.
      questions: about each answer of a pair (source corpus).
      transcripts, verdict_pairs: how many are written (source corpus).
      http: the chat API.
      transcript, model: the recorded replies, and whose they are (empty: the only model in the file); or the folder.
      preset: the folder's shapes (a model preset, in bfloat16) for plans that are made where it is not at hand.
      batch_size: rows per call of a model on the mesh.
      weights, kv_cache: how a model on the mesh (embedded, folder) is kept: "float", or "int8" (half the bytes of bfloat16;
        the matrices of its blocks with a scale per output, keys and values with one per token and head).
    """

    backend: str = "embedded"
    prompts: str = ""
    train: TrainConfig = TrainConfig()
    max_length: int = 128
    pair_max_length: int = 256
    transcripts: int = 30000
    verdict_pairs: int = 20000
    pair_batch_size: int = 4
    questions: int = 4
    source: str = "corpus"
    http: HttpConfig = HttpConfig()
    transcript: str = ""
    model: str = ""
    preset: str = ""
    batch_size: int = 128
    weights: str = "float"  # float | int8
    kv_cache: str = "float"  # float | int8

    def __post_init__(self):
        choices = {
            "backend": ("embedded", "folder", "http", "recorded"), "source": ("corpus", "labelled"),
            "weights": ("float", "int8"), "kv_cache": ("float", "int8"),
        }  # fmt: skip
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise UserError(f"feedback.{field} is {getattr(self, field)!r}; expected one of {', '.join(allowed)}")

        if self.backend == "folder" and not self.model:
            raise UserError("feedback.backend is folder: name the folder as feedback.model")
        if self.preset:
            preset(self.preset)  # an unknown one is refused here
        if self.train.accumulation != 1:
            raise UserError("feedback.train.accumulation must be 1: its loss is a sum of two means")

    @property
    def family(self) -> str:
        """The prompt family in use."""
        return self.prompts or ("embedded" if self.backend == "embedded" else "zh")


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """The principle-guided judge as a reward.

    Attributes:
      principles, strategies: where S_D and S_G start: a file with one rule per line, or the name of a bundled list.
      game: the game that optimises them; None: they stay as they are.
      mode: soft (P(Good) from the logits), checklist (the same for each principle alone, the lowest counts), binary (the
        spoken verdict), k_vote (the share of `votes` verdicts at `temperature`) or pairwise (share of wins against other
        samples of the group, both orders).
      rules: rewards by rule beside it.
    """

    principles: str = "principles"
    strategies: str = "strategies"
    game: GameConfig | None = GameConfig()
    mode: str = "soft"
    votes: int = 3
    temperature: float = 0.7
    rules: RuleConfig = RuleConfig()

    @property
    def single_mode(self) -> str:
        """The mode that rates one answer by itself, for the game, the evaluation and `judge score`."""
        return "soft" if self.mode == "pairwise" else self.mode

    def __post_init__(self):
        modes = ("soft", "checklist", "binary", "k_vote", "pairwise")
        if self.mode not in modes:
            raise UserError(f"judge.mode is {self.mode!r}; expected one of {', '.join(modes)}")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Held-out comparison: `limit` prompts (0 = all), sampled with these settings, `batch_size` prompts at a time.

    `best_of` > 1 adds the baseline that needs no training: the best of so many SFT answers by the reward model.
    """

    limit: int = 0
    batch_size: int = 64
    sampling: SamplingConfig = SamplingConfig()
    best_of: int = 0


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """`wandb_project` empty = W&B off."""

    wandb_project: str = ""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One experiment: tokenizer -> SFT -> [feedback model -> curated pairs ->] reward model [-> independent grader]
    [-> judge's principles] [-> DPO] -> RL against the reward model [and RL against the judge] -> evaluation.

    What is None is left out; without SFT, the policy that later stages start from is `model.init_from` as it is.
    `rl_judge` None with a judge: the judge arm trains with the settings of `rl`. With `lora`, every stage trains an
    adapter over the (frozen) weights that it starts from; the next one starts from their sum. In RL one base is in memory:
    the reference, and the policy's with its adapter, the critic's with another, and the reward model's (`reward.init` sft).
    """

    name: str = "run"
    seed: int = 0
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    mesh: MeshConfig = MeshConfig()
    sft: SftConfig | None = SftConfig()
    reward: RewardConfig = RewardConfig()
    grader: RewardConfig | None = None
    feedback: FeedbackConfig | None = None
    curate: CurateConfig | None = None
    judge: JudgeConfig | None = None
    dpo: DpoConfig | None = None
    lora: LoraConfig | None = None
    rl: RlConfig = RlConfig()
    rl_rules: RuleConfig = RuleConfig()
    rl_judge: RlConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()

    def __post_init__(self):
        for field in ("curate", "judge"):
            if getattr(self, field) is not None and self.feedback is None:
                raise UserError(f"{field} is set, but feedback is not: nobody gives the feedback")
        if self.sft is None and not self.model.init_from:
            raise UserError("sft is None and model.init_from is empty: there is no policy to start from")
        if self.tokenizer.path and self.model.init_from:
            raise UserError("tokenizer.path is set beside model.init_from, whose tokenizer is used; leave it empty")
        exact = self.model.rollout_weights == self.model.kv_cache == "float"
        if not exact and "none" in (self.rl.policy.correction, self.rl_of("rl_judge").policy.correction):
            raise UserError(
                "with model.rollout_weights or model.kv_cache in int8 the sampler is not quite the policy: set "
                "rl.policy.correction, for example to token_truncate"
            )
        embedded = self.feedback is not None and self.feedback.backend == "embedded"
        if embedded and self.judge is None:
            raise UserError("the embedded feedback model needs a judge section: it learns lists of at most game.limit rules")
        for field in ("reward", "grader"):
            if getattr(self, field) is not None and getattr(self, field).init == "feedback" and not embedded:
                raise UserError(f"{field}.init is feedback, but the run trains no feedback model (feedback.backend embedded)")
        if self.lora is not None and (self.rl.offload_reference or self.rl_of("rl_judge").offload_reference):
            raise UserError("rl.offload_reference: under lora the policy's own base is the reference; set it to false")
        critics = [rl.critic for rl in (self.rl, self.rl_of("rl_judge")) if rl.critic is not None]
        if any(critic.init == "reward" for critic in critics):
            self._check_critic_start()

    def _check_critic_start(self):
        """A critic that starts from the reward model needs one of this run, and with adapters one over the policy's base."""
        if self.reward.folder:
            raise UserError("rl.critic.init is reward, but the reward model is that of reward.folder: set rl.critic.init=policy")
        if self.lora is not None and not self.shares_base("reward"):
            raise UserError(
                "lora: a critic that starts from the reward model shares the policy's base, and with "
                f"reward.init={self.reward.init} the reward model has another: set reward.init=sft, or rl.critic.init=policy"
            )

    def shares_base(self, stage: str) -> bool:
        """Whether the adapter of "reward" or "grader" lies over the same weights as that of RL, which are then held once."""
        cfg = getattr(self, stage)
        started = cfg.init == "sft" or (self.sft is None and cfg.init == "base")
        return self.lora is not None and not cfg.folder and started

    def rl_of(self, stage: str) -> RlConfig:
        """The settings of the stage "rl" or "rl_judge"."""
        return self.rl_judge or self.rl if stage == "rl_judge" else self.rl


def find_config(path: str | Path) -> Path:
    """The file `path`, or where there is none, the bundled config of that bare name (`greetings_demo`)."""
    path = Path(path)
    if path.is_file():
        return path
    folder = Path(str(importlib.resources.files("rlaif_jax.configs")))
    bundled = {file.stem: file for file in sorted(folder.glob("[!_]*.py"))}
    if str(path) not in bundled:
        raise UserError(f"config {path} does not exist; the bundled ones, by name: {', '.join(bundled)}")
    return bundled[str(path)]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Runs `config()` of a Python file or of a bundled config, and applies `a.b=c` overrides. Errors name the file or the field."""
    path = find_config(path)
    if path.suffix == ".json":
        cfg = from_dict(RunConfig, json.loads(path.read_text(encoding="utf-8")))
    else:
        spec = importlib.util.spec_from_file_location("rlaif_user_config", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not callable(getattr(module, "config", None)):
            raise UserError(f"{path}: a config file defines a function config() that returns a RunConfig")
        cfg = module.config()
    if not isinstance(cfg, RunConfig):
        raise UserError(f"{path}: config() returned {type(cfg).__name__}; expected RunConfig")
    return overridden(cfg, overrides)
