"""Debates, rejection sampling into pairs, retrieval, and what survives a crash."""

import json

import numpy as np
import pytest
from rich.console import Console

from rlaif_jax.data.records import Prompt, SftExample
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.curate import CurateConfig, curate, pairs_of, read_items
from rlaif_jax.feedback.debate import Debate, debate
from rlaif_jax.feedback.llm import Failure, LLMReply
from rlaif_jax.feedback.prompts import load_prompts
from rlaif_jax.feedback.retrieval import Retriever, tfidf_embedder

PROMPTS = load_prompts("zh")


class Panel:
    """Plays every role by simple rules: good answers hold 好; the judge errs on 误, which the reflection mends."""

    name = "panel"

    def __init__(self):
        self.candidates = 0

    def complete(self, requests, on_reply=None):
        texts = [r.messages[-1].content for r in requests]
        return [self._reply(text, texts[:i].count(text), requests[i].seed) for i, text in enumerate(texts)]

    def _reply(self, text, number, seed):
        """`number`: how often the same was asked before in this batch; the seed tells those requests apart."""
        if "评论员" in text:
            return LLMReply("话")
        if "严格的评委" in text or "复核" in text:
            if "坏掉" in text:
                return LLMReply(failure=Failure("server"))
            good = ("好" in text.split("回答：⟦")[1].split("⟧")[0]) != ("误" in text and "严格的评委" in text)
            return LLMReply(json.dumps({"verdict": int(good), "reason": "因"}, ensure_ascii=False))
        self.candidates += 1
        return LLMReply(f"{'好' if number % 2 else '差'}祝福{seed % 7}号")


def test_a_debate_is_recorded_whole_and_the_reflection_has_the_last_word():
    found = debate(Agent(Panel(), PROMPTS), [("问", "好祝福"), ("问", "误祝福好"), ("问", "坏掉")])
    assert [(d.verdict, d.final, d.agreed) for d in found] == [(1, 1, True), (0, 1, False), (None, None, False)]
    assert found[0].positive == "话" and found[0].reason == "因" and found[2].problem.startswith("judge: server")


def test_pairs_join_one_prompt_by_nearest_length_each_answer_once():
    def d(response, final, verdict=None):
        return Debate("问", response, verdict=final if verdict is None else verdict, final=final)

    found = pairs_of([d("a" * 10, 1), d("b" * 30, 1), d("c" * 28, 0), d("d" * 12, 0, 1), d("e" * 90, 0), d("f", None)], 2, 1.0)
    assert [(len(p.chosen), len(p.rejected), p.margin) for p in found] == [(10, 12, 0.5), (30, 28, 1.0)]
    assert pairs_of([d("a", 1), d("b", 1)], 2, 1.0) == []


def run(path, count, llm=None, **more):
    llm = llm or Panel()
    cfg = CurateConfig(source="llm", chunk=4, **{"candidates": 4, **more})
    records = [Prompt(f"给{i}号朋友写一条祝福") for i in range(count)]
    return curate(records, Agent(llm, PROMPTS), Agent(llm, PROMPTS), None, cfg, path, seed=0, console=Console(quiet=True))


def test_a_crash_loses_and_repeats_nothing(tmp_path):
    whole = run(tmp_path / "whole.jsonl", 10)
    path = tmp_path / "items.jsonl"
    run(path, 5)
    path.write_bytes(path.read_bytes() + b'{"prompt": "half a li')
    resumed = run(path, 10)
    assert resumed == whole == read_items(path)
    assert all(item["pairs"] for item in whole)
    again = Panel()
    assert run(path, 10, again) == whole and again.candidates == 0


def test_too_many_lost_verdicts_stop_the_run_but_keep_what_was_decided(tmp_path):
    class Broken(Panel):
        def _reply(self, text, number, seed):
            return LLMReply(failure=Failure("timeout")) if "严格的评委" in text else super()._reply(text, number, seed)

    with pytest.raises(UserError, match="100% of the debates"):
        run(tmp_path / "i.jsonl", 8, Broken())
    assert len(read_items(tmp_path / "i.jsonl")) == 4


def test_retrieval_is_the_exact_nearest(one_device, eight_devices):
    rng = np.random.default_rng(0)
    words = ["春节", "中秋", "生日", "老师", "爸爸", "客户", "祝福", "一条", "幽默", "八个字"]
    examples = [SftExample("".join(rng.choice(words, 4)), f"答{i}") for i in range(203)]
    embed = tfidf_embedder([e.prompt for e in examples])
    queries = ["给老师的春节祝福", "爸爸生日八个字"]
    scores = embed(queries) @ embed([e.prompt for e in examples]).T
    for place in (one_device, eight_devices):
        found = Retriever(examples, embed, place)(queries, 5)
        for query_scores, row in zip(scores, found, strict=True):
            best = np.sort(query_scores)[::-1][:5]
            at = [examples.index(e) for e in row]
            assert np.allclose(query_scores[at], best, atol=1e-6)
    own = Retriever(examples, embed, one_device)([examples[0].prompt], 3)[0]
    assert all(e.prompt != examples[0].prompt for e in own)


def test_a_frequent_request_leaves_room_for_others(one_device):
    examples = [SftExample("写生日祝福", str(i)) for i in range(12)] + [SftExample(f"写生日贺词{i}", "好") for i in range(3)]
    found = Retriever(examples, tfidf_embedder([e.prompt for e in examples]), one_device)(["写生日祝福"], 3)[0]
    assert sorted(e.prompt for e in found) == ["写生日贺词0", "写生日贺词1", "写生日贺词2"]


def test_a_line_separator_in_an_answer_is_part_of_it(tmp_path):
    path, text = tmp_path / "items.jsonl", "第一行\u2028第二行\u0085第三行"
    path.write_text(json.dumps({"prompt": text, "pairs": []}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_items(path) == [{"prompt": text, "pairs": []}]


def test_popularity_breaks_ties(one_device):
    examples = [SftExample("甲乙", "1"), SftExample("甲丙", "2"), SftExample("甲丙", "3")]
    embed = tfidf_embedder([e.prompt for e in examples])
    plain = Retriever(examples, embed, one_device)(["甲"], 1)[0][0]
    popular = Retriever(examples, embed, one_device, popularity_weight=1.0)(["甲"], 1)[0][0]
    assert popular.prompt == "甲丙" and plain.prompt in ("甲乙", "甲丙")
