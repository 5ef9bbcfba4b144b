"""Multi-agent rejection sampling: from prompts to debated candidates and preference pairs, one JSON line per prompt.

    prompt -> retrieved examples -> K candidates -> debate on each -> accepted x rejected of the same prompt -> pairs

A line is written when its prompt is finished, so a killed run continues with the next prompt. Replies of a chat API are in
the reply cache and are not paid for again. A prompt for which some request got no answer (a server that is down, a wrong key) is
written too, but not as finished: it is curated again at the end, and at the next start. Of several lines of a prompt the last one
counts.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlaif_jax import state_files
from rlaif_jax.data.records import PreferencePair, Prompt, SftExample
from rlaif_jax.data.streams import stream
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.curated_items import check_lost, drop_torn_line, key_of, read_items, unanswered
from rlaif_jax.feedback.debate import Debate, debate
from rlaif_jax.feedback.llm import LLMReply, worst
from rlaif_jax.feedback.prompts import Prompts
from rlaif_jax.feedback.retrieval import Retriever
from rlaif_jax.feedback.thinking import said
from rlaif_jax.feedback.verdicts import Item
from rlaif_jax.ranges import Count, CountOrZero, Range, Share, Temperature, Tokens, Weight, check_fields

_LEAST_RECENT = 16  # the share of lost debates is that of the last `chunk` prompts, at least of so many



@dataclasses.dataclass(frozen=True)
class CurateConfig:
    """Multi-agent rejection sampling.

    Attributes:
      prompts: number of RL prompts to curate; 0 = all.
      candidates: candidate answers per prompt.
      temperature: sampling temperature of the candidates.
      max_tokens: limit on a candidate, in tokens.
      reply_tokens: limit on each side's statement in the debate, in tokens.
      source: model that writes the candidates: "policy" (after SFT) or "llm" (the feedback model).
      examples: number of retrieved few-shot examples in the prompt. Use 0 for a small model that was not trained with examples.
      embedder: how examples are found: empty for character n-gram TF-IDF, else the folder of a sentence-transformers model.
      popularity_weight: weight of a bonus for examples whose request is frequent (see `Retriever`).
      pairs_per_prompt: largest number of pairs per prompt. Pairs of similar length are preferred.
      margin: Bradley-Terry margin of a pair if the reflection agreed with the judge on both answers; half of it if on one.
      chunk: prompts per batch.
      max_invalid: stop if a larger share of the debates gives no valid verdict.
      with_data_pairs: train the reward model on `data.pairs` as well.
    """

    prompts: CountOrZero = 0
    candidates: Annotated[int, Range(2, 2**16)] = 4
    temperature: Temperature = 1.0
    max_tokens: Tokens = 128
    reply_tokens: Tokens = 256
    source: str = "policy"
    examples: Annotated[int, Range(0, 1000)] = 0
    embedder: str = ""
    popularity_weight: Weight = 0.0
    pairs_per_prompt: Count = 2
    margin: Weight = 0.0
    chunk: Count = 64
    max_invalid: Share = 0.2
    with_data_pairs: bool = False

    def __post_init__(self):
        check_fields(self)
        if self.source not in ("policy", "llm"):
            raise UserError(f"curate.source is {self.source!r}; expected policy or llm")


def check_examples(cfg: CurateConfig, prompts: Prompts) -> None:
    """UserError where examples are retrieved, but the author's prompts show none."""
    if cfg.examples and not prompts.shows("candidate", "examples"):
        raise UserError(
            f"curate.examples is {cfg.examples}, but candidate.j2 of the prompts {prompts.family!r} shows no examples; use the "
            "field `examples` there, or set curate.examples=0"
        )


def curate(
    records: Sequence[Prompt], author: Agent, feedback: Agent, retriever: Retriever | None, cfg: CurateConfig, path: Path, *,
    seed: int, console: Console, principles: Sequence[str] = (),
) -> list[dict[str, Any]]:  # fmt: skip
    """Curates every prompt that is not yet finished in the file `path`. Returns all items of the file, in its order.

    `author` writes the candidates, `feedback` debates them by the `principles`. An item is {"prompt", "system", "examples",
    "debates": [...], "pairs": [...], "lost": candidates that are not debated, by cause, "problem": the first failure of a request
    for a candidate, "unanswered": whether to curate the prompt again}. UserError if too many requests or debates give nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    drop_torn_line(path)
    items = {key_of(item): item for item in read_items(path)}
    wanted = {(r.prompt, r.system): r for r in records}
    recent = [item for item in items.values() if not unanswered(item)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with path.open("a", encoding="utf-8") as file, Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("curate: prompts", total=len(recent))
        for _ in range(2):  # the second time those that got no answer
            todo = [r for key, r in wanted.items() if key not in items or unanswered(items[key])]
            finished = len(items.keys() | wanted.keys()) - len(todo)
            progress.update(task, total=finished + len(todo), completed=finished)
            for start in range(0, len(todo), cfg.chunk):
                new = _curate_chunk(todo[start : start + cfg.chunk], author, feedback, retriever, cfg, seed, principles)
                file.writelines(json.dumps(state_files.sealed(item), ensure_ascii=False) + "\n" for item in new)
                file.flush()
                os.fsync(file.fileno())
                items |= {key_of(item): item for item in new}
                progress.advance(task, len(new))
                recent = [*recent, *new][-max(cfg.chunk, _LEAST_RECENT) :]
                check_lost(recent, cfg.max_invalid)
    return list(items.values())


def _curate_chunk(
    records: Sequence[Prompt], author: Agent, feedback: Agent, retriever: Retriever | None, cfg: CurateConfig, seed: int,
    principles: Sequence[str],
) -> list[dict[str, Any]]:  # fmt: skip
    shown = retriever([r.prompt for r in records], cfg.examples) if retriever and cfg.examples else [[] for _ in records]
    requests = [
        author.prompts.request("candidate", max_tokens=cfg.max_tokens, temperature=cfg.temperature,
                               seed=stream(seed, f"curate/{k}"), query=r.prompt, system=r.system, examples=examples)
        for r, examples in zip(records, shown, strict=True)
        for k in range(cfg.candidates)
    ]  # fmt: skip
    replies = author.llm.complete(requests)
    written = [_Candidates(replies[i * cfg.candidates : (i + 1) * cfg.candidates]) for i in range(len(records))]
    answers = [Item(r.prompt, text, r.system) for r, own in zip(records, written, strict=True) for text in own.texts]
    debates = iter(debate(feedback, answers, cfg.reply_tokens, principles))
    return [
        _finished(r, own, [next(debates) for _ in own.texts], examples, cfg)
        for r, own, examples in zip(records, written, shown, strict=True)
    ]


class _Candidates:
    """The candidates for one prompt: different `texts` without thinking; all others counted by cause in `lost`."""

    def __init__(self, replies: Sequence[LLMReply]):
        self.texts: list[str] = []
        self.lost: dict[str, int] = {}
        failures = [r.failure for r in replies if r.failure is not None]
        for reply in replies:
            text, cause = said(reply)
            if reply.failure is not None:
                cause = reply.failure.kind
            elif not cause and text in self.texts:
                cause = "duplicate"
            if cause:
                self.lost[cause] = self.lost.get(cause, 0) + 1
            else:
                self.texts.append(text)
        failure = worst(failures)
        self.problem = str(failure) if failure else ""
        self.unanswered = any(f.unanswered for f in failures)


def _finished(
    r: Prompt, written: _Candidates, debates: list[Debate], examples: Sequence[SftExample], cfg: CurateConfig
) -> dict[str, Any]:
    pairs, fields = pairs_of(debates, cfg.pairs_per_prompt, cfg.margin), ("prompt", "chosen", "rejected", "margin", "system")
    return {
        "prompt": r.prompt, "system": r.system, "examples": [e.prompt for e in examples],
        "debates": [dataclasses.asdict(d) for d in debates],
        "pairs": [{name: getattr(p, name) for name in fields} for p in pairs],
        "lost": written.lost, "problem": written.problem,
        "unanswered": written.unanswered or any(d.unanswered for d in debates),
    }  # fmt: skip


def pairs_of(debates: Sequence[Debate], most: int, margin: float) -> list[PreferencePair]:
    """Pairs of an accepted and a rejected answer, each answer used once. The nearest lengths are paired first, so that length
    does not predict which answer is chosen."""
    accepted = [d for d in debates if d.final == 1]
    rejected = [d for d in debates if d.final == 0]
    by_length = sorted(
        ((abs(len(a.response) - len(r.response)), i, j) for i, a in enumerate(accepted) for j, r in enumerate(rejected))
    )
    pairs, used = [], set()
    for _, i, j in by_length:
        if len(pairs) == most:
            break
        if ("a", i) in used or ("r", j) in used:
            continue
        used |= {("a", i), ("r", j)}
        good, bad = accepted[i], rejected[j]
        agreed = (good.agreed + bad.agreed) / 2
        pairs.append(PreferencePair(good.query, good.response, bad.response, margin=margin * agreed, system=good.system))
    return pairs
