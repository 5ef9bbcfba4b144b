"""The sections of a run that belong to no library: where data comes from, who gives feedback, arms, evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated

from rlaif_jax.data.corpus.build import CorpusConfig
from rlaif_jax.data.sources import FORMATS, ON_ERROR
from rlaif_jax.errors import UserError, shown
from rlaif_jax.feedback.defence import DEFENCES
from rlaif_jax.feedback.http_config import HttpConfig
from rlaif_jax.feedback.llm import LLM
from rlaif_jax.feedback.principle_game import GameConfig
from rlaif_jax.feedback.prompts import family_for
from rlaif_jax.language import Language
from rlaif_jax.models.model_config import preset
from rlaif_jax.ranges import Count, CountOrZero, Range, ShareBelowOne, Temperature, Tokens, Weight, check_fields
from rlaif_jax.rewards.function import FunctionConfig
from rlaif_jax.rewards.rules import RuleConfig
from rlaif_jax.sampling.filters import SamplingConfig
from rlaif_jax.trainers.config import RlConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One data file.

    Attributes:
      path: path of the file, relative to `data.root`; a folder of shards, a pattern ("train-*.parquet"), or "tfds:FOLDER".
      format: "auto" (by the columns of each row), "chat", "alpaca", "sharegpt_pairs", "verl" or "labelled".
      columns: field of a record (prompt, response ...) -> column of the file, if their names differ; "" = no column.
      prefix: text that is put before every prompt.
      limit: number of rows to read from the start of the file; 0 = all.
      on_error: what a row that cannot be read does: "raise", or "skip" (counted and reported).
    """

    path: str = ""
    format: str = "auto"
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    limit: CountOrZero = 0
    on_error: str = "raise"

    def __post_init__(self):
        check_fields(self)
        for field, allowed in (("format", FORMATS), ("on_error", ON_ERROR)):
            if getattr(self, field) not in allowed:
                raise UserError(f"{field} is {shown(getattr(self, field))}; expected one of {', '.join(allowed)}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data files.

    Attributes:
      root: the folder of the files; empty: the bundled corpus is written into the run folder and read from there.
      corpus: sizes of the bundled corpus.
      sft: training examples for SFT.
      sft_eval: held-out examples for SFT.
      pairs: preference pairs to train on.
      pairs_eval: held-out preference pairs.
      labelled: answers labelled good (1) or bad (0), from which the grader and the game learn.
      labelled_val: labelled answers on which the game's gate measures a change; empty path: a part of `labelled`.
      labelled_eval: held-out labelled answers.
      prompts: requests for RL and curation.
      eval_prompts: held-out requests for the evaluation.
      eval_fraction: share of a training file's prompts that is held out where its *_eval file has no path.
      grader_share: share of the pairs' prompts that the grader gets and the reward model does not.
    """

    root: str = ""
    corpus: CorpusConfig = CorpusConfig()
    sft: SourceConfig = SourceConfig("sft.jsonl")
    sft_eval: SourceConfig = SourceConfig("sft_val.jsonl")
    pairs: SourceConfig = SourceConfig("pairs_train.jsonl")
    pairs_eval: SourceConfig = SourceConfig("pairs_test.jsonl")
    labelled: SourceConfig = SourceConfig("labelled_train.jsonl")
    labelled_val: SourceConfig = SourceConfig("labelled_val.jsonl")
    labelled_eval: SourceConfig = SourceConfig("labelled_test.jsonl")
    prompts: SourceConfig = SourceConfig("prompts.jsonl")
    eval_prompts: SourceConfig = SourceConfig("eval_prompts.jsonl")
    eval_fraction: ShareBelowOne = 0.05
    grader_share: ShareBelowOne = 0.0

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The run's tokenizer, where `model.init_from` brings none.

    Attributes:
      path: a Hugging Face tokenizer folder; empty: a byte-level BPE is trained on the run's own texts.
      vocab_size: tokens of one that is trained.
    """

    path: str = ""
    vocab_size: Annotated[int, Range(300, 2**20)] = 2048

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class FeedbackConfig:
    """Who gives the AI feedback.

    Attributes:
      backend: "embedded" (a model that the run trains on `transcripts` of every role, written by the bundled corpus, or
        on labelled responses of the data), "folder" (the Hugging Face model in the folder `model`, with its own tokenizer
        and template), "http" (a chat API) or "recorded" (the replies in `transcript`). Or a function of your own that returns an
        `LLM` (`feedback/llm.py`): a callable, or "module:name" or "file.py:name"; process 0 alone calls it.
      prompts: a family of prompt files (zh, en, embedded) or a folder; empty: embedded for that backend,
        else the one in the task's language.
      train: training settings of the embedded model; `train.batch_size` counts rows of packed transcripts.
      max_length: tokens of a row of packed transcripts; longer transcripts are left out.
      pair_max_length: tokens of an answer with all questions about it, in a pair of a good and a flawed answer; 0: as max_length.
      source: what the embedded model learns from: "corpus" (transcripts by the bundled grammar) or "labelled" responses.
      transcripts: number of transcripts that the bundled corpus writes for the embedded model (source corpus).
      verdict_pairs: number of pairs of a good and a flawed answer that it writes (source corpus).
      pair_batch_size: pairs of a good and a flawed answer in a training step.
      questions: questions asked about each answer of a pair (source corpus).
      defence: what is done about answers that argue with the judge. "strict": an answer is judged with and without the sentences
        that may be addressed to it, and the lower verdict counts; "filter": without those alone that surely are, for tasks whose
        answers speak of answers, rules or scores; "none": for tasks whose answers hold verdicts, JSON or marks of chats.
      http: settings of the chat API.
      transcript: the file of recorded replies (backend recorded).
      model: backend folder: the Hugging Face folder; backend recorded: the model whose replies to use (empty: the only one in the
        file).
      preset: a model preset with the shapes of the model in `model`, for plans on a machine that does not have that folder.
      batch_size: rows per call of a model on the mesh.
      weights, kv_cache: how a model on the mesh (embedded, folder) is kept: "float", or "int8" (half the bytes of bfloat16;
        the matrices of its blocks with a scale per output, keys and values with one per token and head).
    """

    backend: Callable[[], LLM] | str = "embedded"
    prompts: str = ""
    train: TrainConfig = TrainConfig()
    max_length: Tokens = 128
    pair_max_length: Annotated[int, Range(0, 2**24)] = 256
    transcripts: CountOrZero = 30000
    verdict_pairs: CountOrZero = 20000
    pair_batch_size: Count = 4
    questions: Annotated[int, Range(1, 1000)] = 4
    source: str = "corpus"
    defence: str = "strict"
    http: HttpConfig = HttpConfig()
    transcript: str = ""
    model: str = ""
    preset: str = ""
    batch_size: Count = 128
    weights: str = "float"
    kv_cache: str = "float"

    def __post_init__(self):
        check_fields(self)
        choices = {
            "backend": ("embedded", "folder", "http", "recorded"), "source": ("corpus", "labelled"),
            "weights": ("float", "int8"), "kv_cache": ("float", "int8"), "defence": DEFENCES,
        }  # fmt: skip
        for field, allowed in choices.items():
            own = field == "backend" and (callable(self.backend) or ":" in self.backend)
            if not own and getattr(self, field) not in allowed:
                raise UserError(f"feedback.{field} is {getattr(self, field)!r}; expected one of {', '.join(allowed)}")

        if self.backend == "folder" and not self.model:
            raise UserError("feedback.backend is folder: name the folder as feedback.model")
        if self.preset:
            preset(self.preset)  # an unknown one is refused here
        if self.train.grad_accumulation != 1:
            raise UserError("feedback.train.grad_accumulation must be 1: its loss is a sum of two means")

    def family(self, language: Language) -> str:
        """The prompt family in use for a task in this language."""
        return self.prompts or ("embedded" if self.backend == "embedded" else family_for(language))


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """The principle-guided judge as a reward.

    Attributes:
      principles: the judge's first principles: a file with one per line, or the name of a bundled list.
      strategies: the generator's first strategies for flawed answers, in the same form.
      game: the game that optimises both lists; None: they do not change.
      mode: "soft" (P(Good) from the logits), "checklist" (the same for each principle alone; the lowest counts), "binary" (the
        verdict as text), "k_vote" (the share of several verdicts) or "pairwise" (share of wins against other samples of the
        group, both orders).
      votes: number of verdicts on an answer (mode k_vote).
      temperature: sampling temperature of these verdicts (mode k_vote).
    """

    principles: str = "principles"
    strategies: str = "strategies"
    game: GameConfig | None = GameConfig()
    mode: str = "soft"
    votes: Annotated[int, Range(1, 1000)] = 3
    temperature: Temperature = 0.7

    @property
    def single_mode(self) -> str:
        """The mode that rates one answer by itself, for the game, the evaluation and `judge score`."""
        return "soft" if self.mode == "pairwise" else self.mode

    def __post_init__(self):
        check_fields(self)
        modes = ("soft", "checklist", "binary", "k_vote", "pairwise")
        if self.mode not in modes:
            raise UserError(f"judge.mode is {self.mode!r}; expected one of {', '.join(modes)}")


@dataclasses.dataclass(frozen=True)
class ArmConfig:
    """One way to train the policy by RL: a weighted sum of rewards, and the settings of RL.

    Attributes:
      reward_model: weight of the reward model that this run trains or loads (section `reward`); 0 = not used.
      judge: weight of the judge (section `judge`); 0 = not used.
      functions: rewards of your own by name: a callable `score(samples)`, or a `FunctionConfig` with weight and timeout.
      rules: rewards by rule.
      rl: settings of RL; None: those of the run's section `rl`.
    """

    reward_model: Weight = 0.0
    judge: Weight = 0.0
    functions: dict[str, FunctionConfig] = dataclasses.field(default_factory=dict)
    rules: RuleConfig = RuleConfig()
    rl: RlConfig | None = None

    def __post_init__(self):
        if not isinstance(self.functions, Mapping):
            raise UserError(f"arm: functions is {shown(self.functions)}; expected functions by name, such as {{'short': short}}")
        found = {n: f if isinstance(f, FunctionConfig) else FunctionConfig(f) for n, f in self.functions.items()}
        object.__setattr__(self, "functions", found)
        check_fields(self)
        if taken := sorted(found.keys() & _REWARD_NAMES):
            raise UserError(f"arm: a function is called {taken[0]!r}, which names another reward; choose another name")
        if not self.sources and not self.rules.constraint_weight + self.rules.repetition_weight + self.rules.length_weight:
            raise UserError("arm: it has no reward; set reward_model, judge, functions or the weight of a rule")

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the rewards that are no rules, as they are logged."""
        learned = [name for name in ("reward_model", "judge") if getattr(self, name)]
        return (*learned, *self.functions)


_REWARD_NAMES = {
    "reward_model", "judge", "reward", "grader", "constraint", "repetition", "length", "model", "unfinished", "excellent",
    "compliance", "judge_p", "grader_score", "debate",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The held-out comparison of all systems.

    Attributes:
      limit: prompts; 0 = all.
      batch_size: prompts at a time.
      sampling: how every system answers.
      best_of: adds a baseline that needs no training: of this many SFT answers, the best by the reward of the first arm that
        maximises the reward model, with its rules and penalties; 0 = off.
      win_rates: prompts on which answers are compared two at a time: every trained policy with what it started from, every two of
        them, and every system with the data's own best answers (on held-out requests that have one). The judge is asked in both
        orders (two requests per comparison); the grader and the reward model compare by their scores; 0 = off.
      debate: prompts whose answers the multi-agent debate grades, for every system: four requests per answer to the feedback
        model; 0 = off, as without one.
    """

    limit: CountOrZero = 0
    batch_size: Count = 64
    sampling: SamplingConfig = SamplingConfig()
    best_of: Annotated[int, Range(0, 1000)] = 0
    win_rates: CountOrZero = 0
    debate: CountOrZero = 0

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """Where metrics go beside metrics.jsonl and TensorBoard.

    Attributes:
      wandb_project: a project of Weights & Biases; empty: off.
    """

    wandb_project: str = ""

    def __post_init__(self):
        check_fields(self)
