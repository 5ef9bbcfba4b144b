"""The stages of a run, in one table: the name of each, what it needs, reads and leaves. It is the only list of stages.

    tokenizer -> sft [-> feedback -> curate] [-> reward] [-> grader] [-> principles] [-> dpo] -> one stage for each arm
    -> evaluate -> report

`rlaif_jax.stages` has the function of each kind. Code that means one particular stage uses its row (`SFT.name`): the name of a
stage is written only here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.sections import ArmConfig
from rlaif_jax.errors import UserError
from rlaif_jax.trainers.config import RewardConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row of the table.

    Attributes:
      name: of the stage, its folder and its command.
      kind: which function of `rlaif_jax.stages` runs it: tokenizer, train, curate, principles, rl, evaluate or report.
      title: what its result is, for reports and model cards: "after supervised fine-tuning".
      help: one line for `rlaif --help`.
      section: cfg -> its settings; None where the config leaves the stage out.
      absent: the hint in the error if the config lacks the stage.
      needs: cfg -> the stages whose results it reads; those that the config leaves out are skipped.
      reads: the config fields that its result depends on ("model", "data.sft"); a change of any other field does not affect it.
      fixed: cfg -> the fields whose change makes a finished result wrong, where these are fewer than `reads`: a tokenizer that was
        trained on other pairs still encodes every text.
      leaves: "policy", "scalar" (a reward model or grader), "principles" or "nothing" that later stages load as a model.
      old_name: its name in run folders of earlier versions.
    """

    name: str
    kind: str
    title: str
    help: str
    section: Callable[[RunConfig], Any]
    absent: str
    needs: Callable[[RunConfig], tuple[Stage, ...]]
    reads: tuple[str, ...]
    leaves: str = "nothing"
    old_name: str = ""
    fixed: Callable[[RunConfig], tuple[str, ...]] | None = None

    def is_outdated_by(self, cfg: RunConfig, field: str) -> bool:
        """Whether a change of this field makes the stage's result wrong; `cfg` is the config that it ran with."""
        if any(_within(field, free) for free in _WHERE) and not any(_within(field, name) for name in _WHAT):
            return False
        fixed = self.reads if self.fixed is None else self.fixed(cfg)
        return any(_within(field, read) or _within(read, field) for read in fixed if read)

    def train(self, cfg: RunConfig) -> TrainConfig:
        """The training settings of a stage that trains a model."""
        return self.section(cfg).train


_WHAT = ("feedback.http.model", "feedback.http.parameters", "feedback.http.min_temperature")
_WHERE = ("name", "mesh", "logging", "feedback.http")  # where a run runs and whom it asks by what way: not what it computes


def _within(field: str, section: str) -> bool:
    return field == section or field.startswith(f"{section}.")


def _trained_here(scalar: RewardConfig | None) -> RewardConfig | None:
    """The settings of a scalar model that the run trains; None where it loads one from a folder, or has none."""
    return None if scalar is None or scalar.folder else scalar


_ALWAYS = ("seed", "model")
_TRAINED = (*_ALWAYS, "lora")
_FEEDBACK = ("feedback", "judge", "language")
_KINDS_OF_ROWS = ("sft", "reward.loss", "reward.folder", "grader.loss", "grader.folder", "dpo")  # which files are read at all
_LABELLED = (*_KINDS_OF_ROWS, "data.labelled", "data.labelled_eval", "data.labelled_val", "data.grader_share", "data.eval_fraction")
_PAIRS = (*_KINDS_OF_ROWS, "data.pairs", "data.pairs_eval", "data.grader_share", "data.eval_fraction", "curate")


def _fixed_tokenizer(cfg: RunConfig) -> tuple[str, ...]:
    from_a_folder = cfg.tokenizer.path or cfg.model.start
    return (*_ALWAYS, "tokenizer", "data.root", "data.corpus", *(() if from_a_folder else ("data.sft",)))


def _fixed_rows(name: str) -> Callable[[RunConfig], tuple[str, ...]]:
    """Of a model that learns from pairs or labelled rows: the files of the kind that it reads."""

    def fixed(cfg: RunConfig) -> tuple[str, ...]:
        pairwise = getattr(getattr(cfg, name), "loss", "") != "binary"
        rows = _PAIRS if pairwise else (*_PAIRS, *_LABELLED)
        return (*_TRAINED, *(r for r in rows if r not in _KINDS_OF_ROWS), "sft", name, "data.root", "data.sft")

    return fixed


TOKENIZER = Stage(
    "tokenizer", "tokenizer", "", "write the bundled corpus (where no data.root is set) and train or copy the tokenizer",
    lambda cfg: cfg.tokenizer, "", lambda cfg: (),
    (*_ALWAYS, "tokenizer", "data", "feedback", "judge", "sft", "reward", "grader", "dpo", "curate", "language", "evaluation"),
    fixed=_fixed_tokenizer,
)  # fmt: skip
SFT = Stage(
    "sft", "train", "after supervised fine-tuning", "supervised fine-tuning on (prompt, response) examples",
    lambda cfg: cfg.sft, "set sft={}", lambda cfg: (TOKENIZER,),
    (*_TRAINED, "sft", "data.root", "data.sft", "data.sft_eval", "data.eval_fraction"), leaves="policy",
)  # fmt: skip
FEEDBACK = Stage(
    "feedback", "train", "trained to give AI feedback",
    "train the embedded feedback model, which plays every role without a key or a download",
    lambda cfg: cfg.feedback if cfg.embedded_feedback else None, "set feedback.backend=embedded", lambda cfg: (TOKENIZER, SFT),
    (*_TRAINED, *_FEEDBACK, *_LABELLED, *_PAIRS, "data.root", "data.sft", "data.prompts", "data.eval_prompts", "evaluation"),
    leaves="policy",
)  # fmt: skip
CURATE = Stage(
    "curate", "curate", "", "arm A: candidates, debates and verdicts on them, into preference pairs",
    lambda cfg: cfg.curate, "set curate={}", lambda cfg: (TOKENIZER, SFT, FEEDBACK),
    (*_TRAINED, "feedback", "judge.principles", "language", "curate", "rl.eval_prompts", "data.root", "data.prompts", "data.sft"),
)  # fmt: skip
REWARD = Stage(
    "reward", "train", "a reward model: its one logit scores an answer", "train the reward model on preference pairs",
    lambda cfg: _trained_here(cfg.reward), "set reward={} without a folder",
    lambda cfg: (TOKENIZER, *starts_of(cfg.reward), CURATE),
    (*_TRAINED, *_PAIRS, *_LABELLED, "reward", "dpo", "data.root", "data.sft"), leaves="scalar", fixed=_fixed_rows("reward"),
)  # fmt: skip
GRADER = Stage(
    "grader", "train", "an independent evaluator: its one logit scores an answer", "train the independent evaluator",
    lambda cfg: _trained_here(cfg.grader), "set grader={} without a folder",
    lambda cfg: (TOKENIZER, *starts_of(cfg.grader), CURATE),
    # Also what decides which rows the arms learn from, since the grader's rows are apart from them.
    (*_TRAINED, *_PAIRS, *_LABELLED, "grader", "judge", "feedback.source", "data.root", "data.sft"), leaves="scalar",
)  # fmt: skip
PRINCIPLES = Stage(
    "principles", "principles", "", "arm B: the game of generator and detector that optimises the judge's principles",
    lambda cfg: None if cfg.judge is None else cfg.judge.game, "set judge.game={}", lambda cfg: (TOKENIZER, SFT, FEEDBACK, CURATE),
    (*_TRAINED, *_FEEDBACK, *_LABELLED, *_PAIRS, "rl.eval_prompts", "reward", "dpo", "data.root", "data.sft", "data.prompts"),
    leaves="principles", old_name="judge",
)  # fmt: skip
DPO = Stage(
    "dpo", "train", "after preference training without RL", "preference training without RL on the reward model's pairs",
    lambda cfg: cfg.dpo, "set dpo={}", lambda cfg: (TOKENIZER, SFT, CURATE),
    (*_TRAINED, *_PAIRS, "dpo", "reward", "data.root", "data.sft"), leaves="policy", fixed=_fixed_rows("dpo"),
)  # fmt: skip
_BEFORE_ARMS = (TOKENIZER, SFT, FEEDBACK, CURATE, REWARD, GRADER, PRINCIPLES, DPO)


def arm_stage(name: str, arm: ArmConfig) -> Stage:
    """The RL stage of an arm."""
    words = {"reward_model": "the reward model", "judge": "the judge"}
    against = " and ".join(words.get(source, f"the function {source}") for source in arm.sources) or "rules"

    def section(cfg: RunConfig) -> Any:
        return cfg.rl_of(name) if name in cfg.all_arms() else None

    def needs(cfg: RunConfig) -> tuple[Stage, ...]:
        critic = cfg.rl_of(name).critic
        scored = arm.reward_model or (critic is not None and critic.init == "reward")
        return TOKENIZER, SFT, *((REWARD,) if scored else ()), *((FEEDBACK, PRINCIPLES) if arm.judge else ())

    def fixed(cfg: RunConfig) -> tuple[str, ...]:
        own = arm.rl if arm.rl is not None else cfg.rl
        scored = arm.reward_model or (own.critic is not None and own.critic.init == "reward")
        sources = (*(_FEEDBACK if arm.judge else ("language",)), *(("reward",) if scored else ()))
        return (*_TRAINED, *sources, *(("rl",) if arm.rl is None else ()), f"arms.{name}", "sft", "data.root", "data.prompts")

    return Stage(
        name, "rl", f"after RL against {against}", "reinforcement learning: GRPO, or PPO where the config has a critic",
        section, f"set arms.{name}={{...}}", needs,
        # The answers of the evaluation must fit into the models, too: that is checked when they are loaded.
        (*_TRAINED, *_FEEDBACK, "rl", "arms", "sft", "reward", "evaluation.sampling", "data.root", "data.prompts"),
        leaves="policy", fixed=fixed,
    )  # fmt: skip


def _evaluated(cfg: RunConfig) -> tuple[Stage, ...]:
    """Every policy that is compared, and every model that grades."""
    policies = tuple(stage for stage in policy_stages(cfg) if stage is not FEEDBACK)
    asked = (FEEDBACK, PRINCIPLES) if cfg.judge is not None or cfg.debated_prompts else ()
    return (TOKENIZER, *policies, REWARD, GRADER, *asked)


EVALUATE = Stage(
    "evaluate", "evaluate", "", "answer the held-out prompts with every system, and score the answers with every grader",
    lambda cfg: cfg.evaluation, "", _evaluated,
    (*_TRAINED, *_FEEDBACK, *_LABELLED, *_PAIRS, "evaluation", "rl", "arms", "sft", "reward", "grader", "dpo", "data"),
)  # fmt: skip
REPORT = Stage(
    "report", "report", "", "write report.html, report.md and report.json from the evaluation",
    lambda cfg: cfg.evaluation, "", lambda cfg: (EVALUATE,), ("",),
)  # fmt: skip
STAGES = (*_BEFORE_ARMS, EVALUATE, REPORT)  # without those of the arms, which each config names


def starts_of(scalar: RewardConfig | None) -> tuple[Stage, ...]:
    """The stage whose weights a scalar model starts from; none for `init` base."""
    starts = {"sft": (SFT,), "feedback": (FEEDBACK,)}
    return () if scalar is None else starts.get(scalar.init, ())


def stages_of(cfg: RunConfig) -> dict[str, Stage]:
    """The stages that this config has, by name, in the order in which they run."""
    arms = tuple(arm_stage(name, arm) for name, arm in cfg.all_arms().items())
    if twice := {s.name for s in arms} & {s.name for s in STAGES}:
        raise UserError(f"arms.{min(twice)}: another stage has that name; call the arm something else")
    return {stage.name: stage for stage in (*_BEFORE_ARMS, *arms, EVALUATE, REPORT) if stage.section(cfg) is not None}


def samples_prompts(cfg: RunConfig) -> bool:
    """Whether any stage samples answers to the RL prompts."""
    return any(stage.kind in ("rl", "curate", "principles") for stage in stages_of(cfg).values())


def policy_stages(cfg: RunConfig) -> tuple[Stage, ...]:
    """The stages of this config that leave a policy, in order."""
    return tuple(stage for stage in stages_of(cfg).values() if stage.leaves == "policy")


def stage_of(cfg: RunConfig, name: str) -> Stage:
    """The stage of that name. UserError, in one line, where the config does not have it."""
    found = stages_of(cfg)
    if name in found:
        return found[name]
    known = {s.name: s for s in STAGES} | {s.old_name: s for s in STAGES if s.old_name}
    if name in known and known[name].name in found:
        return found[known[name].name]
    how = f" ({known[name].absent})" if name in known and known[name].absent else ""
    raise UserError(f"the config {cfg.name!r} has no stage {name!r}{how}; it has {', '.join(found)}")


def needed_by(cfg: RunConfig, stage: Stage) -> tuple[Stage, ...]:
    """The stages that must have finished before this one: those of `needs` that the config has."""
    return tuple(dict.fromkeys(s for s in stage.needs(cfg) if s.section(cfg) is not None))


def final_policy(cfg: RunConfig) -> str:
    """The name of the policy that a run is for: the first arm's, else the last one that is trained."""
    arms = list(cfg.all_arms())
    trained = [stage.name for stage in policy_stages(cfg) if stage is not FEEDBACK]
    return arms[0] if arms else trained[-1]
