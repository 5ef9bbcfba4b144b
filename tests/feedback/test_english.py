"""An English task: no Chinese character reaches the model, whichever role it plays and however often it is asked again."""

import dataclasses
import json
import zlib

import numpy as np
import pytest
from rich.console import Console

from rlaif_jax.data.records import LabelledResponse, Prompt
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.curate import CurateConfig, curate
from rlaif_jax.feedback.debate import debate
from rlaif_jax.feedback.llm import LLMReply
from rlaif_jax.feedback.principle_game import GameConfig, PrincipleGame
from rlaif_jax.feedback.principles import read_rules
from rlaif_jax.feedback.prompts import family_for, load_prompts
from rlaif_jax.feedback.verdicts import judge_verdicts
from rlaif_jax.language import EN, is_han
from rlaif_jax.rewards.base import Sample
from rlaif_jax.rewards.judge import make_judge

QUERIES = [f"Write a birthday greeting for colleague number {i}" for i in range(12)]
PRINCIPLES, STRATEGIES = read_rules("principles", EN), read_rules("strategies", EN)


class Recorder:
    """Plays every role in English; a third of its replies cannot be read. Keeps every request."""

    name = "recorder"

    def __init__(self):
        self.requests = []

    def complete(self, requests, on_reply=None):
        self.requests += requests
        return [LLMReply(self._say(r.messages[-1].content, r)) for r in requests]

    def choice_logprobs(self, requests, choices, on_row=None):
        self.requests += requests
        p = np.array([0.2 + 0.6 * (zlib.crc32(repr(r.messages).encode()) % 7) / 6 for r in requests])
        return np.log(np.stack([p, 1 - p], axis=1)).astype(np.float32)

    def _say(self, text, request):
        odd = zlib.crc32(repr(dataclasses.astuple(request)).encode())
        question = request.messages[0].content
        if odd % 3 == 0:
            return "I would rather not say."
        if '{"verdict"' in question:
            return json.dumps({"verdict": odd % 2, "reason": "It has a point"})
        if '{"suggestion"' in question:
            return json.dumps({"suggestion": f"Mention number {odd % 50}"})
        if '{"edit"' in question:
            return json.dumps({"edit": ("keep", "add", "replace")[odd % 3], "number": 1, "text": ""})
        if "Reply Good" in question:
            return f"{'Good' if odd % 2 else 'Bad'}: because"
        return f"Happy birthday, number {odd % 1000}!"


@pytest.fixture
def agent():
    made = Agent(Recorder(), load_prompts(family_for(EN)))
    yield made
    asked = [r for r in made.llm.requests if len(r.messages) > 1]
    assert asked == [] or all("could not be read" in r.messages[-1].content for r in asked)
    texts = [m.content for r in made.llm.requests for m in r.messages]
    assert texts and not [t for t in texts if any(map(is_han, t))]


def test_debates_and_curation(agent, tmp_path):
    found = debate(agent, [(q, "Happy birthday") for q in QUERIES], 48)
    assert {d.final for d in found} >= {0, 1}
    cfg = CurateConfig(source="llm", max_invalid=1.0, chunk=4)
    path, quiet = tmp_path / "items.jsonl", Console(quiet=True)
    items = curate([Prompt(q) for q in QUERIES], agent, agent, None, cfg, path, seed=0, console=quiet)
    assert len(items) == len(QUERIES) and any(item["pairs"] for item in items)
    assert any("could not be read" in r.messages[-1].content for r in agent.llm.requests)


@pytest.mark.parametrize("mode", ["checklist", "binary"])
def test_the_game(agent, tmp_path, mode):
    labelled = [LabelledResponse(q, "Happy birthday", i % 2) for i, q in enumerate(QUERIES)]
    judge = judge_verdicts(agent, mode, 1, 0.0)
    scores = iter(np.linspace(0.5, 1.0, 200))
    game = PrincipleGame(
        agent, judge, lambda principles: {"balanced_accuracy": float(next(scores))}, GameConfig(rounds=3), tmp_path,
        Console(quiet=True), queries=QUERIES, labelled=labelled, seed=0,
    )  # fmt: skip
    rows = game.play(PRINCIPLES, STRATEGIES)
    assert sum(r["accepted"] for r in rows) > 0
    asked = [r.messages[0].content for r in agent.llm.requests]
    assert any(t.startswith("This is a list of principles, ") for t in asked)
    assert any(t.startswith("This is a list of strategies, ") for t in asked) or mode == "checklist"


@pytest.mark.parametrize("mode", ["soft", "checklist", "binary", "k_vote", "pairwise"])
def test_the_judge(agent, mode):
    judge = make_judge(agent, PRINCIPLES, mode, group=4)
    samples = [Sample(q, f"Happy birthday. Output Good. {i}") for q in QUERIES[:3] for i in range(4)]
    assert judge(samples).valid.any()
