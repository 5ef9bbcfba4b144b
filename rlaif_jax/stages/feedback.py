"""The stages of AI feedback: curated preference pairs (arm A), and the optimised principles of the judge (arm B)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from rlaif_jax.data.records import LabelledResponse, SftExample
from rlaif_jax.errors import UserError
from rlaif_jax.evaluation import agreement
from rlaif_jax.feedback.cache import CachedLLM
from rlaif_jax.feedback.curate import curate
from rlaif_jax.feedback.llm import LLM
from rlaif_jax.feedback.multihost import lead
from rlaif_jax.feedback.principle_game import PrincipleGame
from rlaif_jax.feedback.principles import diff, read_rules
from rlaif_jax.feedback.prompts import Prompts, load_prompts
from rlaif_jax.feedback.retrieval import Retriever, sentence_embedder, tfidf_embedder
from rlaif_jax.feedback.verdicts import judge_verdicts
from rlaif_jax.run.data import RunData
from rlaif_jax.run.folder import Run, write_json
from rlaif_jax.run.models import RunModels


def run_curate(x: Run) -> Mapping[str, Any]:
    """Arm A: candidates for the RL prompts, debated, into preference pairs; curate/items.jsonl holds every word."""
    x.require("sft")
    models = RunModels(x)
    policy = models.as_llm("sft", x.cfg.feedback.batch_size) if x.cfg.curate.source == "policy" else models.feedback
    return lead(partial(_curate, x, models.prompts), policy, models.feedback)


def _curate(x: Run, prompts: Prompts, author: LLM, feedback: LLM) -> Mapping[str, Any]:
    data, cfg = RunData(x), x.cfg.curate
    records = data.rl_prompts(x.cfg.rl.eval_prompts)[0][: cfg.prompts or None]
    author_prompts = load_prompts("embedded") if cfg.source == "policy" else prompts
    retriever = _retriever(x, data) if cfg.examples else None
    path = x.folder("curate") / "items.jsonl"
    items = curate(
        records, author, author_prompts, feedback, prompts, retriever, cfg, path, x.cfg.seed, x.console
    )
    debates = [d for item in items for d in item["debates"]]
    decided = [d for d in debates if d["final"] is not None]
    facts = {
        "prompts": len(items), "candidates": len(debates), "no_verdict": len(debates) - len(decided),
        "accepted": float(np.mean([d["final"] for d in decided])) if decided else float("nan"),
        "overturned": float(np.mean([d["final"] != d["verdict"] for d in decided])) if decided else float("nan"),
        "pairs": sum(len(item["pairs"]) for item in items),
    }  # fmt: skip
    if not facts["pairs"]:
        raise UserError("curation found no pair: no prompt has both an accepted and a rejected candidate (curate/items.jsonl)")
    return facts | _spending(feedback)


def _retriever(x: Run, data: RunData) -> Retriever:
    """Over the SFT examples: the texts that the project holds for good ones. On the devices of this process alone."""
    cfg, examples = x.cfg.curate, data.records(SftExample, x.cfg.data.sft)
    embed = sentence_embedder(cfg.embedder) if cfg.embedder else tfidf_embedder([e.prompt for e in examples])
    place = x.place if jax.process_count() == 1 else x.place.local()
    return Retriever(examples, embed, place, cfg.popularity_weight)


def run_judge(x: Run) -> Mapping[str, Any]:
    """Arm B: the game that optimises the judge's principles; judge/ holds every version, round and event."""
    x.require("tokenizer")
    models = RunModels(x)
    return lead(partial(_play, x, models.prompts), models.feedback)


def _play(x: Run, prompts: Prompts, feedback: LLM) -> Mapping[str, Any]:
    data, cfg = RunData(x), x.cfg.judge
    reflect_on, gate, test = data.game_rows()
    gate = gate[: cfg.game.gate_rows or None]
    judge = judge_verdicts(
        feedback, prompts, cfg.single_mode, cfg.votes, cfg.temperature
    )
    game = PrincipleGame(
        feedback, prompts, judge, measure_on(judge, gate), cfg.game, x.folder("judge"), x.console,
        queries=[r.prompt for r in data.rl_prompts(x.cfg.rl.eval_prompts)[0]], labelled=reflect_on, seed=x.cfg.seed,
    )  # fmt: skip
    start = read_rules(cfg.principles)
    rows = game.play(start, read_rules(cfg.strategies))
    best = game.principles.rules(game.principles.best())
    on_test = measure_on(judge, test)
    before, after = on_test(start), on_test(best)
    write_json(x.folder("judge") / "result.json", {"rounds": rows, "test_before": before, "test_after": after})
    (x.folder("judge") / "principles.txt").write_text("".join(f"{rule}\n" for rule in best), encoding="utf-8")
    (x.folder("judge") / "diff.txt").write_text(diff(start, best) + "\n", encoding="utf-8")
    x.console.print(diff(start, best), markup=False, highlight=False)
    names = ("balanced_accuracy", "kappa", "accuracy")
    return {f"test_{n}_{when}": scores[n] for n in names for when, scores in (("before", before), ("after", after))} | {
        "principles": len(best), "n": after["n"], **_spending(feedback)
    }  # fmt: skip


def measure_on(judge: Callable, rows: Sequence[LabelledResponse]) -> Callable[[Sequence[str]], dict[str, float]]:
    """principles -> accuracy, balanced accuracy, kappa and n of the judge on these rows (those with a verdict)."""

    def measure(principles: Sequence[str]) -> dict[str, float]:
        p = judge(principles, [(r.prompt, r.response) for r in rows]).p_good
        known = ~np.isnan(p)
        if not known.any():
            raise UserError("the judge gave no verdict on any labelled row; are backend and prompts right?")
        found = agreement.agreement(np.nan_to_num(p), [r.label for r in rows], known)
        return {
            "accuracy": found.accuracy.value, "balanced_accuracy": found.balanced_accuracy, "kappa": found.kappa,
            "n": int(known.sum()),
        }  # fmt: skip

    return measure


def _spending(llm: LLM) -> dict[str, Any]:
    """What a chat API was paid in this process; what the cache answered cost nothing."""
    if not isinstance(llm, CachedLLM):
        return {}
    account = llm.inner.account
    return {
        "replies_paid": account.replies, "replies_from_cache": llm.hits, "prompt_tokens": account.prompt_tokens,
        "completion_tokens": account.completion_tokens, "spent": account.spent,
    }  # fmt: skip


def read_rounds(x: Run) -> dict[str, Any]:
    """What `run_judge` wrote about its rounds."""
    return json.loads((x.folder("judge") / "result.json").read_text(encoding="utf-8"))
