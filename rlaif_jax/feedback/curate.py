"""Multi-agent rejection sampling: from prompts to debated candidates and preference pairs, one JSON line per prompt.

    prompt -> retrieved examples -> K candidates -> debate on each -> accepted x rejected of the same prompt -> pairs

A line is written when its prompt is finished, so a killed run continues with the next prompt. Replies of a chat API are in
the reply cache and are not paid for again.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlaif_jax.data.records import PreferencePair, Prompt
from rlaif_jax.data.streams import stream
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.debate import Debate, debate
from rlaif_jax.feedback.retrieval import Retriever


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
    seed: int, console: Console,
) -> list[dict[str, Any]]:  # fmt: skip
    """Curates every prompt that is not yet in the file `path`. Returns all items of the file, in its order.

    `author` writes the candidates, `feedback` debates them.
    An item is {"prompt", "examples", "debates": [...], "pairs": [...]}. UserError if too many debates are invalid.
    """
    items = read_items(path)
    done = {item["prompt"] for item in items}
    todo = [r for r in {r.prompt: r for r in records}.values() if r.prompt not in done]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file, Progress(*columns, console=console) as progress:
        task = progress.add_task("curate: prompts", total=len(items) + len(todo), completed=len(items))
        for start in range(0, len(todo), cfg.chunk):
            new = _curate_chunk(todo[start : start + cfg.chunk], author, feedback, retriever, cfg, seed)
            for item in new:
                file.write(json.dumps(item, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            items += new
            progress.advance(task, len(new))
            _check_lost(new, cfg.max_invalid)
    return items


def read_items(path: Path) -> list[dict[str, Any]]:
    """The items of a file. An incomplete last line, left by a crash, is deleted."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    try:
        return [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
    except ValueError as error:
        raise UserError(f"{path} has a line that is not JSON ({error}); fix it or move the file away") from error


def _curate_chunk(
    records: Sequence[Prompt], author: Agent, feedback: Agent, retriever: Retriever | None, cfg: CurateConfig, seed: int
) -> list[dict[str, Any]]:
    queries = [r.prompt for r in records]
    examples = retriever(queries, cfg.examples) if retriever and cfg.examples else [[] for _ in queries]
    requests = [
        author.prompts.request("candidate", max_tokens=cfg.max_tokens, temperature=cfg.temperature,
                               seed=stream(seed, f"curate/{k}"), query=q, examples=shown)
        for q, shown in zip(queries, examples, strict=True)
        for k in range(cfg.candidates)
    ]  # fmt: skip
    replies = author.llm.complete(requests)
    candidates = [
        list(dict.fromkeys(r.text.strip() for r in replies[i * cfg.candidates : (i + 1) * cfg.candidates]
                           if r.failure is None and r.finish_reason != "length" and r.text.strip()))
        for i in range(len(queries))
    ]  # fmt: skip
    answers = [(q, c) for q, texts in zip(queries, candidates, strict=True) for c in texts]
    debates = debate(feedback, answers, cfg.reply_tokens)
    out, at = [], 0
    for query, texts, shown in zip(queries, candidates, examples, strict=True):
        own, at = debates[at : at + len(texts)], at + len(texts)
        pairs = pairs_of(own, cfg.pairs_per_prompt, cfg.margin)
        out.append({
            "prompt": query, "examples": [e.prompt for e in shown], "debates": [dataclasses.asdict(d) for d in own],
            "pairs": [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected, "margin": p.margin} for p in pairs],
        })  # fmt: skip
    return out


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
        pairs.append(PreferencePair(good.query, good.response, bad.response, margin=margin * agreed))
    return pairs


def _check_lost(items: Sequence[dict[str, Any]], most: float) -> None:
    debates = [d for item in items for d in item["debates"]]
    lost = [d["problem"] for d in debates if d["final"] is None]
    if debates and len(lost) / len(debates) > most:
        raise UserError(
            f"{len(lost) / len(debates):.0%} of the debates gave no valid verdict (limit {most:.0%}). The first problem: "
            f"{lost[0]}. Finished debates are saved; run the same command to continue."
        )
