"""Arm A's curation: candidates for the RL prompts, debates on them, and preference pairs; items.jsonl has every message."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from rlaif_jax.config.stages import SFT, Stage
from rlaif_jax.data.records import SftExample
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.curate import check_examples, curate
from rlaif_jax.feedback.curated_items import causes, why_no_pair
from rlaif_jax.feedback.llm import LLM
from rlaif_jax.feedback.multihost import lead
from rlaif_jax.feedback.principles import read_rules
from rlaif_jax.feedback.prompts import Prompts, load_prompts
from rlaif_jax.feedback.retrieval import Retriever, sentence_embedder, tfidf_embedder
from rlaif_jax.runs.data import RunData
from rlaif_jax.runs.folder import Run
from rlaif_jax.runs.llms import RunLlms
from rlaif_jax.runs.models import RunModels


def run(x: Run, stage: Stage) -> Mapping[str, Any]:
    """Curates pairs from the policy's candidates, or from the feedback model's."""
    llms = RunLlms(x, RunModels(x), stage.name)
    author = llms.policy(SFT.name, x.cfg.feedback.batch_size) if x.cfg.curate.source == "policy" else llms.feedback
    return lead(partial(_curate, x, stage, llms.prompts), author, llms.feedback)


def _curate(x: Run, stage: Stage, prompts: Prompts, author: LLM, llm: LLM) -> Mapping[str, Any]:
    data, cfg = RunData(x), x.cfg.curate
    records, held_out, _ = data.rl_prompts(x.cfg.rl.eval_prompts)
    records = records[: cfg.prompts or None]
    author = Agent(author, load_prompts("embedded") if cfg.source == "policy" else prompts)
    check_examples(cfg, author.prompts)
    retriever = _retriever(x, data) if cfg.examples else None
    path = x.folder(stage.name) / "items.jsonl"
    principles = read_rules(x.cfg.judge.principles, data.language) if x.cfg.judge is not None else []
    judges = Agent(llm, prompts, x.cfg.feedback.defence)
    items = curate(
        records, author, judges, retriever, cfg, path, seed=x.cfg.seed, console=x.console, principles=principles
    )
    debates = [d for item in items for d in item["debates"]]
    decided = [d for d in debates if d["final"] is not None]
    facts = {
        "prompts": len(items), "held_out_prompts": len(held_out), "samples": len(items) * cfg.candidates,
        "candidates": len(debates), "no_verdict": len(debates) - len(decided),
        "accepted": float(np.mean([d["final"] for d in decided])) if decided else float("nan"),
        "overturned": float(np.mean([d["final"] != d["verdict"] for d in decided])) if decided else float("nan"),
        "pairs": sum(len(item["pairs"]) for item in items),
    }  # fmt: skip
    if not facts["pairs"]:
        raise UserError(f"curation found no pair ({path}): {why_no_pair(items)}")
    lost, unanswered = causes(items), sum(item.get("unanswered", False) for item in items)
    facts |= ({"lost": lost} if lost else {}) | ({"unanswered": unanswered} if unanswered else {})
    return facts


def _retriever(x: Run, data: RunData) -> Retriever:
    """Retrieves from the SFT examples, which count as good texts. Runs on this process's devices alone."""
    cfg, examples = x.cfg.curate, [e for e in data.records(SftExample, x.cfg.data.sft) if not e.history]
    embed = sentence_embedder(cfg.embedder) if cfg.embedder else tfidf_embedder([e.prompt for e in examples])
    place = x.place if jax.process_count() == 1 else x.place.local()
    return Retriever(examples, embed, place, cfg.popularity_weight)
