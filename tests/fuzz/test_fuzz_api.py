"""Mutated responses of chat APIs, files of stored replies, transcripts and ledgers: no exception, nothing altered is used."""

import itertools
import json
import math
import random
import shutil

import numpy as np
import pytest

from rlaif_jax.errors import UserError
from rlaif_jax.feedback.api_bodies import Completion, error_code, read_choice, read_completion, sentence
from rlaif_jax.feedback.cache import CachedLLM, RecordedLLM
from rlaif_jax.feedback.llm import LLMReply, LLMRequest, Message
from rlaif_jax.feedback.spending import Ledger, Spending, read_spending
from tests.feedback.scripted_api import completion, error, first_token
from tests.fuzz.mutate import json_mutations, mutations, outcomes

BODIES = (
    completion("Good：有画面", logprobs=first_token(("Good", -0.1), (" bad", -2.5), ("的", -4.0))),
    completion([{"type": "text", "text": "Bad"}], usage={"prompt_tokens": 3, "completion_tokens": None, "total_tokens": 5}),
    completion(None, finish="length", message={"reasoning_content": "hm"}),
    completion(None, message={"refusal": "No."}),
    error("Provider overloaded", code=502),
)


def _read(content: bytes) -> Completion:
    answer = read_completion(content)
    reply, failure = answer.reply, answer.reply.failure
    reply.text.encode("utf-8")
    assert (failure is None) or (not reply.text and failure.detail.isprintable() and len(failure.detail) < 500), failure
    assert all(n is None or (type(n) is int and n >= 0) for n in answer.usage or ())
    assert all(type(n) is int and n >= 0 for n in (reply.prompt_tokens, reply.completion_tokens))
    assert all(isinstance(token, str) and math.isfinite(value) and value <= 0 for token, value in answer.top)
    row, cause = read_choice(answer, ("Good", "Bad"))
    assert len(row) == 2 and ((cause is not None) == any(map(math.isnan, row)))
    assert cause is not None or all(math.isfinite(value) and value <= 1e-6 for value in row)
    assert len(sentence(content)) <= 300 and sentence(content).isprintable() and isinstance(error_code(content), str)
    return answer


def check_bodies(count: int) -> None:
    for number, body in enumerate(BODIES):
        each = count // len(BODIES) // 2
        whole = json.dumps(body, ensure_ascii=False).encode()
        altered = (json.dumps(value).encode("utf-8", "surrogatepass") for value in json_mutations(body, each, number))
        accepted, refused = outcomes(_read, itertools.chain(mutations(whole, each, number), altered))
        assert len(accepted) == 2 * each and not refused
        kinds = {answer.reply.failure and answer.reply.failure.kind for _, answer in accepted}
        assert "bad_body" in kinds and (len(kinds) > 1 or "error" in body), kinds


def test_no_body_breaks_the_reader():
    check_bodies(1500)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_body_breaks_the_reader_slow():
    check_bodies(20_000)


class _Echo:
    name = "echo"

    def complete(self, requests, on_reply=None):
        replies = [LLMReply(f"{r.messages[-1].content}!", 3, 4) for r in requests]
        for i, reply in enumerate(replies):
            on_reply(i, reply)
        return replies

    def choice_logprobs(self, requests, choices, on_row=None):
        rows = np.array([[-0.25 * (1 + len(r.messages[-1].content)), -1.5] for r in requests], np.float32)
        for i, row in enumerate(rows.tolist()):
            on_row(i, row)
        return rows


_REQUESTS = [LLMRequest((Message("user", f"给{i}号写祝福"),)) for i in range(6)]


def _answers(path) -> tuple[list[LLMReply], list]:
    llm = CachedLLM(_Echo(), path)
    try:
        return llm.complete(_REQUESTS), llm.choice_logprobs(_REQUESTS, ("Good", "Bad")).tolist()
    finally:
        llm.close()


def check_stores(count: int, folder) -> None:
    seed = folder / "seed.sqlite"
    right = _answers(seed)
    content = seed.read_bytes()

    def read(data: bytes):
        work = folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        (work / "r.sqlite").write_bytes(data)
        return _answers(work / "r.sqlite")

    accepted, refused = outcomes(read, itertools.chain(mutations(content, count // 2, 7), _in_rows(content, count - count // 2)))
    assert all(found == right for _, found in accepted), "an altered reply was used"
    assert len(accepted) > count // 10 and refused > count // 50


def _in_rows(content: bytes, count: int):
    """Bits flipped inside stored replies, where sqlite itself notices nothing."""
    rng = random.Random(8)
    places = [i for i in range(len(content)) if content[i : i + 6] in (b'"text"', b"_token")]
    for _ in range(count):
        data = bytearray(content)
        at = rng.choice(places) + rng.randrange(40)
        data[at] ^= 1 << rng.randrange(8)
        yield bytes(data)


def test_no_altered_reply_is_used(tmp_path):
    check_stores(80, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_altered_reply_is_used_slow(tmp_path):
    check_stores(10_000, tmp_path)


def check_lines(count: int, folder) -> None:
    llm = CachedLLM(_Echo(), folder / "r.sqlite", Ledger(folder / "spending.jsonl"))
    llm.complete(_REQUESTS)
    llm.choice_logprobs(_REQUESTS, ("Good", "Bad"))
    llm.export(folder / "t.jsonl")
    right = dict(zip(_REQUESTS, llm.complete(_REQUESTS), strict=True))

    def transcript(data: bytes):
        (folder / "work.jsonl").write_bytes(data)
        recorded = RecordedLLM(folder / "work.jsonl", "echo")
        replies = recorded.complete(_REQUESTS)
        assert all(r == right[q] or r.failure.kind == "not_recorded" for q, r in zip(_REQUESTS, replies, strict=True))
        rows = recorded.choice_logprobs(_REQUESTS, ("Good", "Bad"))
        assert np.all(np.isnan(rows) | ((rows <= 0) & np.isfinite(rows)))

    def ledger(data: bytes) -> Spending:
        (folder / "work.jsonl").write_bytes(data)
        total = read_spending(folder / "work.jsonl")
        assert all(math.isfinite(value) and value >= 0 for value in vars(total).values())
        return total

    for read, name in ((transcript, "t.jsonl"), (ledger, "spending.jsonl")):
        content = (folder / name).read_bytes()
        accepted, refused = outcomes(read, mutations(content, count, 9))
        assert accepted and refused


def test_no_line_of_a_transcript_or_a_ledger_breaks_the_reader(tmp_path):
    check_lines(150, tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        RecordedLLM(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_line_of_a_transcript_or_a_ledger_breaks_the_reader_slow(tmp_path):
    check_lines(10_000, tmp_path)
