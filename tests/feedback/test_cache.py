"""Kept replies and transcripts."""

import dataclasses
import json
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from rlaif_jax.errors import UserError
from rlaif_jax.feedback import reply_store
from rlaif_jax.feedback.cache import CachedLLM, RecordedLLM
from rlaif_jax.feedback.llm import Failure, LLMReply, LLMRequest, Message
from rlaif_jax.feedback.spending import Ledger, Spending, read_spending


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


def test_impossible_choices_are_stored_and_impossible_probabilities_refused(tmp_path):
    class Sure(Echo):
        def choice_logprobs(self, requests, choices, on_row=None):
            rows = np.array([[self.value, -np.inf]] * len(requests), np.float32)
            for i, row in enumerate(rows.tolist()):
                on_row(i, row)
            return rows

    llm = CachedLLM(Sure(), tmp_path / "r.sqlite")
    llm.inner.value = 0.0
    llm.choice_logprobs(requests("x"), ("a", "b"))
    assert llm.choice_logprobs(requests("x"), ("a", "b")).tolist() == [[0.0, -1e6]] and llm.misses == 1
    llm.inner.value = 0.7
    with pytest.raises(UserError, match="echo gave the log-probability 0.7"):
        llm.choice_logprobs(requests("y"), ("a", "b"))


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


class Slow(Echo):
    """Takes a moment for each reply."""

    def complete(self, requests, on_reply=None):
        time.sleep(0.15)
        return super().complete(requests, on_reply)

    def choice_logprobs(self, requests, choices, on_row=None):
        time.sleep(0.15)
        return super().choice_logprobs(requests, choices, on_row)


def test_two_at_once_never_ask_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("rlaif_jax.feedback.cache._POLL", 0.02)
    inners, found = [Slow(), Slow()], {}

    def work(number: int) -> None:
        llm = CachedLLM(inners[number], tmp_path / "shared.sqlite")
        texts = [str(i) for i in range(number * 3, number * 3 + 6)]
        found[number] = [r.text for r in llm.complete(requests(*texts))], llm.choice_logprobs(requests(*texts), ("a", "b"))
        llm.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    asked = inners[0].asked + inners[1].asked
    assert len(asked) == 2 * len(set(asked)) == 18, "each of 9 texts once as a text and once as a choice"
    assert [found[n][0] for n in (0, 1)] == [[f"{i}!" for i in range(n * 3, n * 3 + 6)] for n in (0, 1)]
    assert not np.isnan(found[0][1]).any() and not np.isnan(found[1][1]).any()


def test_a_failure_of_the_other_process_is_asked_again_here(tmp_path, monkeypatch):
    monkeypatch.setattr("rlaif_jax.feedback.cache._POLL", 0.02)
    other, mine = CachedLLM(Slow(), tmp_path / "r.sqlite"), CachedLLM(Echo(), tmp_path / "r.sqlite")
    thread = threading.Thread(target=other.complete, args=(requests("fail"),))
    thread.start()
    time.sleep(0.05)
    assert mine.complete(requests("fail"))[0].failure is not None and mine.inner.asked == ["fail"]
    thread.join()


@pytest.mark.parametrize("how", ["dead process", "expired"])
def test_claims_of_the_dead_are_taken_over_at_once(tmp_path, how):
    store = reply_store.ReplyStore(tmp_path / "r.sqlite")
    assert store.claim(["k", "l"]) == ["k", "l"]
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    pid, expires = (dead.pid, time.time() + 60) if how == "dead process" else (os.getpid(), time.time() - 1)
    with sqlite3.connect(tmp_path / "r.sqlite") as db:
        db.execute("UPDATE claims SET pid = ?, expires = ? WHERE key = 'k'", (pid, expires))
    assert reply_store.ReplyStore(tmp_path / "r.sqlite").claim(["k", "l"]) == ["k"]


def test_the_files_are_the_users_alone(tmp_path):
    llm = CachedLLM(Echo(), tmp_path / "r.sqlite")
    llm.complete(requests("x"))
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_an_altered_row_is_named_and_asked_for_again(tmp_path, caplog):
    path = tmp_path / "r.sqlite"
    llm = CachedLLM(Echo(), path)
    llm.complete(requests("x", "y"))
    llm.choice_logprobs(requests("x"), ("a", "b"))
    llm.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE replies SET reply = replace(reply, 'x!', 'z!')")
        db.execute("UPDATE choices SET logprobs = '[-0.1, -0.5]'")
    again = CachedLLM(Echo(), path)
    assert [r.text for r in again.complete(requests("x", "y"))] == ["x!", "y!"] and again.inner.asked == ["x"]
    assert str(path) in caplog.text and "1 stored replies are damaged" in caplog.text
    assert again.choice_logprobs(requests("x"), ("a", "b")).tolist() == [[-0.5, -0.5]]


def test_a_file_of_an_earlier_version_gets_checksums(tmp_path):
    path = tmp_path / "r.sqlite"
    key, reply = requests("x")[0].key("echo"), {"text": "old", "prompt_tokens": 1, "completion_tokens": 1}
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE replies (key TEXT PRIMARY KEY, model TEXT, request TEXT, reply TEXT)")
        db.execute("CREATE TABLE choices (key TEXT PRIMARY KEY, model TEXT, logprobs TEXT)")
        db.execute("INSERT INTO replies VALUES (?, 'echo', '{}', ?)", (key, json.dumps(reply)))
    for _ in range(2):
        llm = CachedLLM(Echo(), path)
        assert llm.complete(requests("x"))[0].text == "old" and not llm.inner.asked
        llm.close()


def test_a_locked_file_and_a_full_disk_are_told_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr(reply_store, "_LOCKED", 0.1)
    path = tmp_path / "r.sqlite"
    llm = CachedLLM(Echo(), path)
    with sqlite3.connect(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="locked by another process.*intact") as found:
            llm.complete(requests("x"))
    assert "move it away" not in str(found.value)
    llm._store._db.execute("PRAGMA max_page_count = 8")
    with pytest.raises(UserError, match="disk is full"):
        llm.complete(requests("y" * 100_000))
    llm._store._db.execute("PRAGMA max_page_count = 100000")
    assert llm.complete(requests("y"))[0].text == "y!"
    with pytest.raises(UserError, match="cannot be opened"):
        CachedLLM(Echo(), tmp_path / "r.sqlite" / "below" / "r.sqlite")


def test_the_ledger_survives_the_process_and_names_a_damaged_line(tmp_path):
    path = tmp_path / "stage" / "spending.jsonl"
    ledger = Ledger(path)
    llm = CachedLLM(Echo(), tmp_path / "r.sqlite", ledger)
    llm.complete(requests("x", "y", "x", "fail"))
    llm.choice_logprobs(requests("x"), ("a", "b"))
    llm.complete(requests("x"))
    assert read_spending(path) == ledger.total == Spending(3, 1, 6, 8)
    with path.open("a") as file:
        file.write('{"requests": 1, "mon')
    assert read_spending(path) == Ledger(path).total == ledger.total
    assert not path.read_text().endswith("mon"), "the line that the crash cut off is gone before the next one is written"
    with path.open("a") as file:
        file.write('{"requests": -1}\n')
    with pytest.raises(UserError, match=r"spending.jsonl:\d: not a line"):
        read_spending(path)
    assert dataclasses.asdict(ledger.total).keys() >= {"requests", "cached", "prompt_tokens", "completion_tokens", "money"}


@pytest.mark.parametrize(
    "line", ['{"key": "k", "model": "m", "logprobs": [Infinity, -1]}', '{"key": "k", "model": "m", "logprobs": [0.5, -1]}',
             '{"key": "k", "model": "m", "reply": {"text": 3}}', '{"key": "k", "model": "m", "reply": {"text": "x", "other": 1}}',
             '{"key": "k", "model": "m", "reply": {"text": "x", "prompt_tokens": -1}}',
             '{"key": 1, "model": "m", "logprobs": [-1]}', "[1]", "{" * 3000,
             '{"key": "k", "model": "m", "reply": {"text": "x", "failure": {"king": 1}}}'],
)  # fmt: skip
def test_odd_lines_of_a_transcript_are_named(tmp_path, line):
    (tmp_path / "t.jsonl").write_text(json.dumps({"key": "a", "model": "m", "reply": {"text": "x\u2028y"}}, ensure_ascii=False)
                                      + "\n" + line + "\n", encoding="utf-8")  # fmt: skip
    with pytest.raises(UserError, match=r"t.jsonl:2: not a line of a transcript"):
        RecordedLLM(tmp_path / "t.jsonl")


def test_a_damaged_file_whose_errors_are_no_text_is_named(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise UnicodeDecodeError("utf-8", b"\x8e", 0, 1, "invalid start byte")

    monkeypatch.setattr(reply_store.sqlite3, "connect", broken)
    with pytest.raises(UserError, match="r.sqlite is not a file of stored replies, or is damaged"):
        reply_store.ReplyStore(tmp_path / "r.sqlite")
