"""Kept replies and transcripts."""

import json

import numpy as np
import pytest

from rlaif_jax.errors import UserError
from rlaif_jax.feedback.cache import CachedLLM, RecordedLLM
from rlaif_jax.feedback.llm import Failure, LLMReply, LLMRequest, Message


class Echo:
    """Answers with the request's text; fails where the text says so; counts what it was asked."""

    def __init__(self, name="echo"):
        self.name, self.asked = name, []

    def complete(self, requests, on_reply=None):
        replies = []
        for i, r in enumerate(requests):
            text = r.messages[-1].content
            self.asked.append(text)
            reply = LLMReply(failure=Failure("timeout")) if "fail" in text else LLMReply(f"{text}!", 3, 4)
            replies.append(reply)
            if on_reply:
                on_reply(i, reply)
        return replies

    def choice_logprobs(self, requests, choices, on_row=None):
        self.asked += [r.messages[-1].content for r in requests]
        rows = [[np.nan] * len(choices) if "fail" in r.messages[-1].content else [-0.5] * len(choices) for r in requests]
        for i, row in enumerate(rows):
            if on_row:
                on_row(i, row)
        return np.array(rows, np.float32)


def requests(*texts, **more):
    return [LLMRequest((Message("user", t),), **more) for t in texts]


def test_only_what_is_new_is_asked_and_failures_are_asked_again(tmp_path):
    inner = Echo()
    llm = CachedLLM(inner, tmp_path / "a" / "replies.sqlite")
    seen = []
    first = llm.complete(requests("甲", "乙", "甲", "fail"), lambda i, r: seen.append((i, r.text)))
    assert [r.text for r in first] == ["甲!", "乙!", "甲!", ""] and inner.asked == ["甲", "乙", "fail"]
    assert sorted(seen) == [(0, "甲!"), (1, "乙!"), (2, "甲!"), (3, "")]
    llm.close()
    again = CachedLLM(inner, tmp_path / "a" / "replies.sqlite")
    assert again.complete(requests("乙", "fail", "丙"))[0] == first[1]
    assert inner.asked[3:] == ["fail", "丙"] and (again.hits, again.misses) == (1, 2)


def test_model_parameters_seed_and_prompt_files_are_in_the_key(tmp_path):
    keys = {
        LLMRequest((Message("user", "x"),), **more).key(model)
        for model in ("a", "b")
        for more in ({}, {"seed": 1}, {"temperature": 0.5}, {"max_tokens": 9}, {"prompt_hash": "h"})
    }
    assert len(keys) == 10
    shared = CachedLLM(Echo("one"), tmp_path / "r.sqlite")
    shared.complete(requests("x"))
    other = CachedLLM(Echo("two"), tmp_path / "r.sqlite")
    other.complete(requests("x"))
    assert other.misses == 1


def test_choice_logprobs_are_kept_too(tmp_path):
    inner = Echo()
    llm = CachedLLM(inner, tmp_path / "r.sqlite")
    first = llm.choice_logprobs(requests("x", "fail"), ("Good", "Bad"))
    assert first[0].tolist() == [-0.5, -0.5] and np.isnan(first[1]).all()
    llm.choice_logprobs(requests("x", "fail"), ("Good", "Bad"))
    assert inner.asked == ["x", "fail", "fail"]
    llm.choice_logprobs(requests("x"), ("A", "B"))
    assert inner.asked[-1] == "x"


def test_a_transcript_stands_in_for_the_model(tmp_path):
    llm = CachedLLM(Echo("m"), tmp_path / "r.sqlite")
    replies = llm.complete(requests("甲", "乙"))
    llm.choice_logprobs(requests("甲"), ("a", "b"))
    assert llm.export(tmp_path / "t.jsonl") == 3
    recorded = RecordedLLM(tmp_path / "t.jsonl")
    assert recorded.name == "m" and recorded.complete(requests("乙", "甲")) == replies[::-1]
    assert recorded.complete(requests("new"))[0].failure.kind == "not_recorded"
    assert recorded.choice_logprobs(requests("甲"), ("a", "b")).tolist() == [[-0.5, -0.5]]
    assert np.isnan(recorded.choice_logprobs(requests("甲"), ("a", "c"))).all()


def test_a_transcript_may_hold_line_separators(tmp_path):
    llm = CachedLLM(Echo("m"), tmp_path / "r.sqlite")
    texts = ("一\u2028二", "一\u0085二", "一\u2029二")
    replies = llm.complete(requests(*texts))
    llm.export(tmp_path / "t.jsonl")
    assert RecordedLLM(tmp_path / "t.jsonl").complete(requests(*texts)) == replies


def test_a_run_that_dies_keeps_every_choice_that_came(tmp_path):
    class Dies(Echo):
        def choice_logprobs(self, requests, choices, on_row=None):
            super().choice_logprobs(requests[:1], choices, on_row)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CachedLLM(Dies(), tmp_path / "r.sqlite").choice_logprobs(requests("x", "y"), ("Good", "Bad"))
    again = CachedLLM(Echo(), tmp_path / "r.sqlite")
    again.choice_logprobs(requests("x", "y", "y"), ("Good", "Bad"))
    assert again.inner.asked == ["y"]


def test_broken_files_are_named(tmp_path):
    (tmp_path / "r.sqlite").write_text("no database at all, and long enough to be read as one" * 50)
    with pytest.raises(UserError, match="r.sqlite"):
        CachedLLM(Echo(), tmp_path / "r.sqlite")
    (tmp_path / "t.jsonl").write_text(json.dumps({"key": "k", "model": "m", "reply": {"text": "x"}}) + "\nnonsense\n")
    with pytest.raises(UserError, match="t.jsonl:2"):
        RecordedLLM(tmp_path / "t.jsonl")
    with pytest.raises(UserError, match="does not exist"):
        RecordedLLM(tmp_path / "none.jsonl")
