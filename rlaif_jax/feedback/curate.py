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
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlaif_jax.data.records import PreferencePair, Prompt, SftExample, from_row
from rlaif_jax.data.streams import stream
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.debate import Debate, debate
from rlaif_jax.feedback.llm import LLMReply, worst
from rlaif_jax.feedback.retrieval import Retriever
from rlaif_jax.feedback.thinking import said
from rlaif_jax.feedback.verdicts import Item

_LEAST_RECENT = 16  # the share of lost debates is that of the last `chunk` prompts, at least of so many
_MOST_UNUSABLE = 32  # so many candidates that are cut off, empty or thinking only, and no other, stop the run
_CONTINUE = "Finished debates are saved; run the same command to continue: it asks again what got no answer."
# In files of older versions, a debate that failed for want of an answer is known by its problem alone.
_OLD_FAILURE = re.compile(r"(?:judge: |reflect: )?(?:timeout|rate_limit|server|connection|bad_body|budget|rejected|not_recorded):")


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

    prompts: int = 0
    candidates: int = 4
    temperature: float = 1.0
    max_tokens: int = 128
    reply_tokens: int = 256
    source: str = "policy"
    examples: int = 0
    embedder: str = ""
    popularity_weight: float = 0.0
    pairs_per_prompt: int = 2
    margin: float = 0.0
    chunk: int = 64
    max_invalid: float = 0.2
    with_data_pairs: bool = False

    def __post_init__(self):
        if self.candidates < 2:
            raise UserError(f"curate.candidates is {self.candidates}; pairs need at least 2 answers per prompt")
        if self.source not in ("policy", "llm"):
            raise UserError(f"curate.source is {self.source!r}; expected policy or llm")
        for field in ("chunk", "pairs_per_prompt", "max_tokens", "reply_tokens"):
            if getattr(self, field) < 1:
                raise UserError(f"curate.{field} is {getattr(self, field)}; expected at least 1")


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
    _drop_torn_line(path)
    items = {_key(item): item for item in read_items(path)}
    wanted = {(r.prompt, r.system): r for r in records}
    recent = [item for item in items.values() if not _unanswered(item)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with path.open("a", encoding="utf-8") as file, Progress(*columns, console=console) as progress:
        task = progress.add_task("curate: prompts", total=len(recent))
        for _ in range(2):  # the second time those that got no answer
            todo = [r for key, r in wanted.items() if key not in items or _unanswered(items[key])]
            finished = len(items.keys() | wanted.keys()) - len(todo)
            progress.update(task, total=finished + len(todo), completed=finished)
            for start in range(0, len(todo), cfg.chunk):
                new = _curate_chunk(todo[start : start + cfg.chunk], author, feedback, retriever, cfg, seed, principles)
                file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in new)
                file.flush()
                os.fsync(file.fileno())
                items |= {_key(item): item for item in new}
                progress.advance(task, len(new))
                recent = [*recent, *new][-max(cfg.chunk, _LEAST_RECENT) :]
                _check_lost(recent, cfg.max_invalid)
    return list(items.values())


def _key(item: Mapping[str, Any]) -> tuple[str, str]:
    """Two rows with one prompt and different system turns are two prompts."""
    return item["prompt"], item.get("system", "")


def read_items(path: Path) -> list[dict[str, Any]]:
    """The items of a file, one per prompt; none if there is no file. An incomplete last line, left by a crash, is skipped.

    UserError with file and line for a line that is not an item.
    """
    items: dict[tuple[str, str], dict[str, Any]] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else [], 1):
        try:
            item = json.loads(line.decode("utf-8"))
            _check_item(item, f"{path}:{number}")
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            why = error if isinstance(error, ValueError) else type(error).__name__
            raise UserError(f"{path}:{number} is not an item of the curation ({why}); mend or delete the line") from error
        items[_key(item)] = item
    return list(items.values())


def _check_item(row: Any, where: str) -> None:
    """An error if a line of the file is not an item. Lines of older versions lack some of the fields."""
    texts = [row["prompt"], row.get("system", ""), row.get("problem", ""), *row.get("examples", [])]
    debates = [Debate(**d) for d in row.get("debates", [])]
    texts += [value for d in debates for value in dataclasses.astuple(d) if not isinstance(value, int | None)]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("expected a text")
    verdicts = [value for d in debates for value in (d.verdict, d.final) if value is not None]
    if any(isinstance(value, bool) or value not in (0, 1) for value in verdicts):
        raise ValueError("a verdict is 0, 1 or null")
    for pair in row["pairs"]:
        from_row(PreferencePair, pair, where)
    if not all(isinstance(count, int) for count in row.get("lost", {}).values()):
        raise ValueError("lost: expected counts by cause")
    if not isinstance(row.get("unanswered", True), bool):
        raise ValueError("unanswered: expected true or false")


def _unanswered(item: Mapping[str, Any]) -> bool:
    """Whether a prompt is to be curated again, since some request got no answer."""
    debates = item.get("debates", [])
    return item.get("unanswered", not debates or any(_OLD_FAILURE.match(d["problem"]) for d in debates))


def _drop_torn_line(path: Path) -> None:
    """Deletes an incomplete last line, left by a crash."""
    content = path.read_bytes() if path.exists() else b""
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with path.open("r+b") as file:
            file.truncate(complete)


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


def causes(items: Sequence[Mapping[str, Any]]) -> str:
    """Why candidates and debates gave nothing, with counts: "cut 3, duplicate 2"; "" if all gave something."""
    counts = _lost(items)
    for d in _debates(items):
        if d["final"] is None:
            cause = d.get("cause") or "unreadable"
            counts[cause] = counts.get(cause, 0) + 1
    return ", ".join(f"{cause} {count}" for cause, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _debates(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [d for item in items for d in item.get("debates", [])]


def _lost(items: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Candidates that are not debated, by cause."""
    counts: dict[str, int] = {}
    for cause, count in (pair for item in items for pair in item.get("lost", {}).items()):
        counts[cause] = counts.get(cause, 0) + count
    return counts


def _first_problem(items: Sequence[Mapping[str, Any]]) -> str:
    """The first thing that went wrong with a request, as the end of a sentence; "" if nothing did."""
    for item in items:
        for text in (item.get("problem", ""), *(d["problem"] for d in _debates([item]) if d["final"] is None)):
            if text:
                return f". The first problem: {text}"
    return ""


def why_no_pair(items: Sequence[Mapping[str, Any]]) -> str:
    """Why the items have no pair, in words."""
    finals = {d["final"] for d in _debates(items)}
    counts = f" ({causes(items)})" if causes(items) else ""
    if not finals:
        advice = "; raise curate.max_tokens" if _lost(items).keys() & {"cut", "thinking"} else ""
        return f"no candidate could be used{counts}{advice}{_first_problem(items)}"
    named = {
        frozenset(): "no debate gave a valid verdict", frozenset({1}): "all debated candidates were accepted",
        frozenset({0}): "all debated candidates were rejected",
    }  # fmt: skip
    reason = named.get(frozenset(finals - {None}), "no prompt has both an accepted and a rejected candidate")
    return f"{reason}{counts}{_first_problem(items)}"


def _check_lost(items: Sequence[Mapping[str, Any]], most: float) -> None:
    """UserError if too many of these items' requests or debates gave nothing. Candidates that were written but cannot be used
    stop the run only if there is no other."""
    debates, lost = _debates(items), _lost(items)
    failed = sum(count for cause, count in lost.items() if cause not in ("cut", "thinking", "empty", "duplicate"))
    invalid, asked = sum(d["final"] is None for d in debates) + failed, len(debates) + failed
    if invalid <= most * asked and (debates or sum(lost.values()) < _MOST_UNUSABLE):
        return
    if not debates:
        raise UserError(f"{why_no_pair(items)}. {_CONTINUE}")
    raise UserError(
        f"{invalid / asked:.0%} of the debates gave no valid verdict (limit {most:.0%}, curate.max_invalid): "
        f"{causes(items)}{_first_problem(items)}. {_CONTINUE}"
    )
