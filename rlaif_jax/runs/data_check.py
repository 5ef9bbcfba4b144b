"""Checks all data that a run reads, before its first stage: every mistake in one list, and what there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlaif_jax.config.run_config import RunConfig
from rlaif_jax.config.stages import CURATE, DPO, EVALUATE, FEEDBACK, GRADER, PRINCIPLES, REWARD, SFT, TOKENIZER, Stage
from rlaif_jax.data.records import LabelledResponse, PreferencePair, Prompt, Record, SftExample, turns_of
from rlaif_jax.data.tokenizer import Tokenizer, conversation
from rlaif_jax.errors import UserError
from rlaif_jax.models.pretrained import resolve
from rlaif_jax.runs.data import RunData
from rlaif_jax.runs.folder import Run
from rlaif_jax.runs.models import check_lengths

FEW_LABELS = 50  # fewer labelled rows of a part measure next to nothing
_SAMPLE = 300  # rows of a file whose tokens are counted
KINDS: dict[str, type] = {
    "prompts": Prompt, "eval_prompts": Prompt, "sft": SftExample, "sft_eval": SftExample, "pairs": PreferencePair,
    "pairs_eval": PreferencePair, "labelled": LabelledResponse, "labelled_val": LabelledResponse, "labelled_eval": LabelledResponse,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DataCheck:
    """What was found.

    Attributes:
      problems: what a stage would stop at.
      warnings: what makes a result weaker.
      facts: rows of each file and part, one line each.
    """

    problems: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    facts: list[str] = dataclasses.field(default_factory=list)


def files_read(run: Run, stages: Iterable[Stage]) -> list[str]:
    """The fields of `data` whose files these stages read, in the order of the config."""
    data, cfg, names = RunData(run), run.cfg, {stage.name if stage.kind != "rl" else "rl" for stage in stages}
    trains = [c for c in (cfg.reward, cfg.grader) if c is not None and not c.folder]
    found: set[str] = set()
    texts = TOKENIZER.name in names and not (cfg.tokenizer.path or cfg.model.start)
    seen = {EVALUATE.name, FEEDBACK.name} & names or (texts and cfg.embedded_feedback)
    labels = {PRINCIPLES.name, FEEDBACK.name} & names or (GRADER.name in names and any(c.loss == "binary" for c in trains))
    pairs = {REWARD.name, GRADER.name, DPO.name} & names or texts or seen or labels
    if data.uses_prompts and ({CURATE.name, PRINCIPLES.name, "rl"} & names or seen):
        found |= {"prompts"}
    found |= {"eval_prompts"} if seen else set()
    if cfg.sft is not None and (SFT.name in names or pairs):
        found |= {"sft"}
    if SFT.name in names and cfg.data.sft_eval.path:
        found |= {"sft_eval"}
    if CURATE.name in names and cfg.curate is not None and cfg.curate.examples:
        found |= {"sft"}
    if pairs and data.uses_pairs:
        found |= {"pairs"} if data.reads_pairs else set()
        held_out = cfg.data.pairs_eval
        found |= {"pairs_eval"} if held_out.path and (data.reads_pairs or data.is_given(held_out)) else set()
    if not cfg.data.grader_share and (labels or (EVALUATE.name in names and data.has_labels)):
        found |= {"labelled"} | ({"labelled_eval"} if cfg.data.labelled_eval.path else set())
        found |= {"labelled_val"} if labels and data.is_given(cfg.data.labelled_val) else set()
    return [field for field in KINDS if field in found]


def check_data(run: Run, stages: Sequence[Stage]) -> DataCheck:
    """Opens, counts and checks every file that these stages read."""
    found, data = DataCheck(), RunData(dataclasses.replace(run, console=_Kept()))
    fields = files_read(run, stages)
    for field in fields:
        source = getattr(run.cfg.data, field)
        rows = _tried(found, lambda field=field, source=source: data.records(KINDS[field], source))
        if rows is not None:
            found.facts.append(f"data.{field}: {len(rows):,} rows ({data.path_of(source)})")
    _tried(found, lambda: check_lengths(run.cfg, resolve(run.cfg.model)))
    if not found.problems:  # the parts are made of files, all of which must be there
        _check_parts(found, data, run, fields, {stage.name for stage in stages})
        _check_lengths(found, data, run, fields)
    said = dict.fromkeys(data._run.console.lines)
    found.warnings.extend(line for line in said if line not in found.warnings)
    return found


class _Kept:
    """Keeps what would be printed."""

    def __init__(self):
        self.lines: list[str] = []

    def print(self, text: Any, **_: Any) -> None:
        self.lines.append(str(text))


def _tried(found: DataCheck, work: Callable[[], Any]) -> Any:
    """What `work` returns; None where it raises a UserError, which is one of the problems."""
    try:
        return work()
    except UserError as error:
        if str(error) not in found.problems:
            found.problems.append(str(error))
        return None


def _check_parts(found: DataCheck, data: RunData, run: Run, fields: Sequence[str], names: set[str]) -> None:
    cfg = run.cfg
    if SFT.name in names and (parts := _tried(found, lambda: data.split(SftExample, cfg.data.sft, cfg.data.sft_eval))):
        found.facts.append(f"SFT: {len(parts[0]):,} examples, {len(parts[1]):,} held out")
    if "prompts" in fields:
        arms = [name for name in cfg.all_arms() if name in names]
        held_out = {cfg.rl_of(name).eval_prompts for name in arms}
        held_out |= {cfg.rl.eval_prompts} if {CURATE.name, PRINCIPLES.name} & names else set()
        for count in sorted(held_out):
            if parts := _tried(found, lambda count=count: data.rl_prompts(count)):
                found.facts.append(f"RL prompts: {len(parts[0]):,} to train on, {len(parts[1]):,} held out (rl.eval_prompts)")
    if "eval_prompts" in fields and (kept := _tried(found, data.eval_prompts)):
        every = len({r for r in map(_key, data.records(Prompt, cfg.data.eval_prompts))})
        used = min(cfg.evaluation.limit or every, every)
        gone = f"; {every - len(kept):,} are also in a training file and left out" if len(kept) < used else ""
        found.facts.append(f"evaluation: {len(kept):,} prompts{gone}")
    if {REWARD.name, GRADER.name, DPO.name} & names and data.reads_pairs:
        _check_pairs(found, data)
    if "labelled" in fields or cfg.data.grader_share:
        _check_labels(found, data, cfg, names)


def _key(record: Prompt) -> tuple[str, str]:
    return record.system, record.prompt


def _check_pairs(found: DataCheck, data: RunData) -> None:
    parts = _tried(found, data.pairs)
    if parts is None:
        return
    held_out = _tried(found, data.require_held_out_pairs)
    left_out = f" ({len(parts[2]) - len(held_out):,} more are also in a training file and left out)" if held_out is not None else ""
    grader = f", {len(parts[1]):,} for the grader (data.grader_share)" if parts[1] else ""
    found.facts.append(f"pairs: {len(parts[0]):,} for the reward model{grader}, {len(held_out or ()):,} held out{left_out}")
    if not parts[0]:
        found.problems.append("data.grader_share leaves the reward model no pair; lower it, or give more pairs")


def _check_labels(found: DataCheck, data: RunData, cfg: RunConfig, names: set[str]) -> None:
    learns = GRADER.name in names and cfg.grader is not None and cfg.grader.loss == "binary"
    game = PRINCIPLES.name in names
    if learns or not game:
        parts = _tried(found, data.grader_rows if learns else data.labelled)
        labelled = {"to train on": parts[0], "held out": parts[1]} if parts else {}
        what = "the grader's labelled answers" if learns else "labelled answers"
        for part in ("to train on", "held out") if learns else ("held out",):
            _check_part(found, f"{what} {part}", labelled.get(part), needed=learns)
    if game:
        limit = cfg.judge.game.gate_rows or None
        parts = _tried(found, data.game_rows) or ()
        for part, rows in zip(("to reflect on", "of the gate", "of the test"), parts, strict=False):
            rows = rows[:limit] if part == "of the gate" else rows
            _check_part(found, f"the judge's labelled answers {part}", rows, needed=True, both=part == "of the gate")


def _check_part(found: DataCheck, what: str, rows: Sequence[LabelledResponse] | None, *, needed: bool, both: bool = False) -> None:
    """Counts, and what is wrong with them. `both`: without answers of both labels the part cannot do its work."""
    if rows is None:
        return
    good = sum(r.label for r in rows)
    found.facts.append(f"{what}: {good:,} good, {len(rows) - good:,} bad")
    if not rows:
        why = "none is left without those that are also in a training file"
        (found.problems if needed else found.warnings).append(
            f"data.labelled: {what}: {why}" + ("" if needed else "; graders are not checked against labels")
        )
    elif good in (0, len(rows)):
        label = "good" if good else "bad"
        text = f"data.labelled: {what}: all {len(rows):,} are {label}; both labels are needed to tell good from bad"
        (found.problems if both else found.warnings).append(text)
    elif len(rows) < FEW_LABELS:
        found.warnings.append(f"data.labelled: {what}: only {len(rows)}; below {FEW_LABELS}, accuracies say little")


def _check_lengths(found: DataCheck, data: RunData, run: Run, fields: Sequence[str]) -> None:
    """The share of rows over each token limit, of a sample; in characters where there is no tokenizer yet."""
    tokenizer = _tried(found, lambda: tokenizer_of(run))
    for field, kind, limits in _limits(run.cfg):
        if field not in fields:
            continue
        rows = data.records(kind, getattr(run.cfg.data, field))
        sample = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(int))]
        if tokenizer is None:
            characters = [max(map(len, _answers(r))) + sum(len(t["content"]) for t in turns_of(r)) for r in sample]
            middle = int(np.median(characters))
            found.facts.append(f"data.{field}: {middle:,} characters in the median, {max(characters):,} at most")
            continue
        lengths = np.array([_tokens(r, tokenizer) for r in sample])
        for name, limit in limits.items():
            over = float(np.mean(lengths > limit))
            text = f"data.{field}: {over:.1%} of the rows are longer than {name}={limit} tokens"
            if over == 1:
                found.problems.append(f"{text} (the shortest has {lengths.min()}); raise it")
            elif over > 0:
                found.facts.append(f"{text} and left out")


def tokenizer_of(run: Run) -> Tokenizer | None:
    """The run's tokenizer where there is one already: from a folder that the config names, or that a stage has made."""
    made = run.folder(TOKENIZER.name) / "tokenizer"
    source = run.cfg.tokenizer.path or run.cfg.model.start or (str(made) if Path(made).exists() else "")
    return Tokenizer.load(source) if source else None


def _limits(cfg: RunConfig) -> list[tuple[str, type, dict[str, int]]]:
    """(field of data, its kind, config field -> limit in tokens)."""
    scalar = {"reward": cfg.reward, "grader": cfg.grader, "dpo": cfg.dpo}
    pairs = {
        f"{name}.max_length": c.max_length for name, c in scalar.items()
        if c is not None and not getattr(c, "folder", "") and getattr(c, "loss", "") != "binary"
    }  # fmt: skip
    binary = {f"{n}.max_length": c.max_length for n, c in scalar.items() if c is not None and getattr(c, "loss", "") == "binary"}
    prompts = {"rl.max_prompt_tokens": cfg.max_prompt_tokens}
    sft = {"sft.max_length": cfg.sft.max_length} if cfg.sft is not None else {}
    return [
        ("prompts", Prompt, prompts), ("eval_prompts", Prompt, prompts), ("sft", SftExample, sft), ("sft_eval", SftExample, sft),
        ("pairs", PreferencePair, pairs), ("pairs_eval", PreferencePair, pairs), ("labelled", LabelledResponse, binary),
    ]  # fmt: skip


def _answers(record: Record) -> list[str]:
    return [getattr(record, name) for name in ("response", "chosen", "rejected") if hasattr(record, name)] or [""]


def _tokens(record: Record, tokenizer: Tokenizer) -> int:
    if isinstance(record, Prompt):
        return len(tokenizer.encode_messages(turns_of(record)))
    return max(len(conversation(tokenizer, record, text)[0]) for text in _answers(record))
