"""Chat APIs as they are: refused parameters, odd bodies, errors in words, dead addresses, budgets."""

import json
import math
import os
import re
import signal
import socket
import threading
import time

import numpy as np
import pytest

from rlaif_jax.config import AdvantageConfig, FeedbackConfig, JudgeConfig, RlConfig, RunConfig
from rlaif_jax.config.overrides import overridden
from rlaif_jax.config.values import from_dict, to_dict
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.cache import CachedLLM
from rlaif_jax.feedback.choices import choice_row
from rlaif_jax.feedback.llm import LLMRequest, Message
from rlaif_jax.feedback.openai_llm import HttpConfig, OpenAILLM
from rlaif_jax.feedback.prompts import load_prompts
from rlaif_jax.rewards.base import Sample, checked
from rlaif_jax.rewards.judge import make_judge
from tests.feedback.scripted_api import ScriptedApi, completion, error, first_token

GOOD, BAD = "Good", "Bad"
VERDICT = '{"verdict": 1, "reason": "fine"}'


@pytest.fixture
def serve():
    servers = []

    def start(answer, **more) -> ScriptedApi:
        servers.append(ScriptedApi(answer if callable(answer) else lambda *_: answer, **more))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def llm_at(server, **more) -> OpenAILLM:
    url = server if isinstance(server, str) else server.url
    return OpenAILLM(HttpConfig("m", url, **{"key_variable": "", "timeout": 3.0, "attempts": 3, **more}))


def asked(count: int = 1) -> list[LLMRequest]:
    return [LLMRequest((Message("user", f"rate text {i}"),), 64) for i in range(count)]


# ---- parameters


def test_parameters_are_renamed_left_out_and_added(serve):
    server = serve((200, completion("Good", logprobs=first_token(("Good", -0.1), ("Bad", -2.5)))))
    llm = llm_at(
        server, max_tokens_name="max_completion_tokens", top_logprobs=5,
        parameters={"seed": None, "temperature": None, "reasoning_effort": "low"},
    )  # fmt: skip
    llm.complete(asked())
    llm.choice_logprobs(asked(), (GOOD, BAD))
    plain, choice = server.bodies
    assert plain.keys() == {"model", "messages", "max_completion_tokens", "reasoning_effort"}
    assert plain["max_completion_tokens"] == 64 and choice["max_completion_tokens"] == 1 and choice["top_logprobs"] == 5
    assert llm.name != llm_at(server).name, "other parameters give other replies, so they are part of the identity"


def test_a_least_temperature_for_servers_that_refuse_zero(serve):
    server = serve((200, completion()))
    llm_at(server, min_temperature=0.05).complete([*asked(), LLMRequest((Message("user", "x"),), temperature=0.7)])
    assert sorted(body["temperature"] for body in server.bodies) == [0.05, 0.7]


@pytest.mark.parametrize("value", [{1}, math.nan, object()])
def test_parameters_that_json_cannot_hold_are_refused(value):
    with pytest.raises(UserError, match="JSON"):
        HttpConfig("m", parameters={"x": value})


def test_parameters_come_from_the_command_line_and_survive_a_saved_config():
    cfg = overridden(
        RunConfig(feedback=FeedbackConfig(), judge=JudgeConfig()),
        ['feedback.http.parameters={"seed": None, "stop": ["x"]}', "feedback.http.parameters.user=none", "feedback.http.cache=a"],
    )
    assert cfg.feedback.http.parameters == {"seed": None, "stop": ["x"], "user": None} and cfg.feedback.http.cache == "a"
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(cfg)))) == cfg


def test_pairwise_needs_a_group():
    small = RlConfig(group_size=1, advantage=AdvantageConfig(baseline="none"))
    with pytest.raises(UserError, match="rl_judge: judge.mode is pairwise.*group_size is 1"):
        RunConfig(feedback=FeedbackConfig(), judge=JudgeConfig(mode="pairwise"), rl=small)


@pytest.mark.parametrize("name", ["messages", "n", "stream", "max_tokens", "logprobs"])
def test_parameters_that_would_break_the_protocol_or_the_budget_are_refused(name):
    with pytest.raises(UserError, match=name):
        HttpConfig("m", parameters={name: 1})


REFUSALS = [
    (400, error("Unsupported parameter: 'max_tokens'. Use another."), "max_tokens_name=max_completion_tokens"),
    (400, error("'temperature' only supports the default"), "min_temperature=0.01"),
    (422, {"error": "`temperature` must be strictly positive", "error_type": "validation"}, "strictly positive"),
    (422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}, "body.seed: Extra inputs"),
    (400, error("top_logprobs must be at most 5"), "feedback.http.top_logprobs=5"),
    (401, error("Incorrect API key provided"), "Incorrect API key provided.*feedback.http.key_variable"),
    (403, {"message": "not allowed from this country"}, "not allowed from this country"),
    (404, error("The model `m` does not exist"), "does not exist.*feedback.http.model"),
    (402, error("Insufficient Balance"), "Insufficient Balance"),
    (429, error("You exceeded your current quota", code="insufficient_quota"), "exceeded your current quota"),
    (503, b"<html><title>Bad gateway</title><style>p {}</style></html>", "HTTP 503: Bad gateway"),
]


@pytest.mark.parametrize(("status", "body", "sentence"), REFUSALS)
def test_the_servers_own_sentence_is_shown_and_the_field_named(serve, status, body, sentence):
    server = serve((status, body))
    llm = llm_at(server, attempts=2 if status >= 500 else 8)
    failure = llm.complete(asked())[0].failure
    assert len(server.bodies) == (2 if status >= 500 else 1)
    assert re.search(sentence, failure.detail) and f"HTTP {status}" in failure.detail


def test_sentences_are_short_on_one_line_and_hold_no_key(serve, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "topsecret-0815")
    text = "\x1b[31mbad\x1b[0m key topsecret-0815 or sk-abcdefgh12345678\r\n\x07next\x9b2J " + "long " * 500
    failure = llm_at(serve((401, error(text))), key_variable="SOME_KEY").complete(asked())[0].failure
    assert len(failure.detail) < 450 and failure.detail.isprintable()
    assert "topsecret" not in failure.detail and "abcdefgh" not in failure.detail and "bad key" in failure.detail


@pytest.mark.parametrize("mode", ["soft", "checklist", "binary", "k_vote", "pairwise"])
def test_a_dead_judge_ends_rl_with_the_servers_sentence_in_every_mode(serve, mode):
    agent = Agent(llm_at(serve((401, error("Key was revoked yesterday")))), load_prompts("en"))
    result = make_judge(agent, ["be kind"], mode, group=2)([Sample("q", "a"), Sample("q", "b")])
    with pytest.raises(UserError, match=r"100% of the rewards.*HTTP 401: Key was revoked yesterday"):
        checked(result, 0.2)


# ---- nothing more is sent where nothing can be answered


@pytest.mark.parametrize(
    ("status", "body"), [(401, error("no")), (404, error("no model")), (429, error("quota", code="insufficient_quota"))]
)
def test_after_a_refusal_for_all_no_more_requests_are_sent(serve, status, body):
    server = serve((status, body))
    replies = llm_at(server, concurrency=2, attempts=8).complete(asked(200))
    assert len(server.bodies) <= 4 and {r.failure.detail for r in replies} == {replies[0].failure.detail}
    assert all(r.failure.unanswered for r in replies)


def test_the_same_refusal_again_and_again_is_not_asked_for_every_row(serve):
    server = serve((400, error("Unsupported parameter: 'seed'")))
    replies = llm_at(server, concurrency=2).complete(asked(100))
    assert len(server.bodies) <= 12 and replies[-1].failure.unanswered


def test_a_refusal_of_one_text_is_that_rows_alone(serve):
    server = serve(lambda n, b: (400, error("too long")) if "7" in b["messages"][0]["content"] else (200, completion()))
    replies = llm_at(server, concurrency=1).complete(asked(30))
    assert [i for i, r in enumerate(replies) if r.failure] == [7, 17, 27] and not replies[7].failure.unanswered


def test_a_dead_address_ends_within_seconds_and_names_the_field():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    began = time.monotonic()
    replies = llm_at(url, attempts=8, concurrency=4).complete(asked(40))
    assert time.monotonic() - began < 8
    assert all(r.failure.kind == "connection" and r.failure.unanswered for r in replies)
    assert url in replies[-1].failure.detail and "feedback.http.base_url" in replies[-1].failure.detail


def test_an_outage_in_the_middle_is_not_waited_for_by_every_request(serve):
    server = serve(lambda n, b: (200, completion()) if n <= 5 else (503, error("overloaded"), {"retry-after-ms": "5"}))
    replies = llm_at(server, concurrency=2, attempts=2).complete(asked(300))
    assert sum(r.failure is None for r in replies) == 5 and len(server.bodies) < 40
    assert "overloaded" in replies[-1].failure.detail


def test_a_flaky_server_is_asked_again_as_configured(serve):
    server = serve(lambda n, b: (200, completion()) if n % 3 == 0 else (500, error("oops"), {"retry-after-ms": "5"}))
    replies = llm_at(server, concurrency=1, attempts=3).complete(asked(4))
    assert [r.text for r in replies] == ["ok"] * 4 and len(server.bodies) == 12


def test_retry_after_is_kept_and_an_hour_is_not_waited(serve):
    server = serve((429, error("come back later"), {"retry-after": "3600"}))
    began = time.monotonic()
    failure = llm_at(server, attempts=5).complete(asked())[0].failure
    assert time.monotonic() - began < 3 and len(server.bodies) == 1 and failure.kind == "rate_limit"


def test_a_timeout_is_a_deadline_also_for_a_server_that_drips(serve):
    began = time.monotonic()
    failure = llm_at(serve((200, completion()), drip=0.1), timeout=0.5, attempts=1).complete(asked())[0].failure
    assert failure.kind == "timeout" and time.monotonic() - began < 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(serve, status):
    other = serve((200, completion("stolen")))
    server = serve((status, b"", {"Location": other.url.replace("127.0.0.1", "127.0.0.2") + "/chat/completions"}))
    failure = llm_at(server).complete(asked())[0].failure
    assert not other.bodies and "127.0.0.2" in failure.detail and "base_url" in failure.detail


def test_ctrl_c_does_not_wait_for_the_server(serve):
    server = serve(lambda n, b: (time.sleep(20), (200, completion()))[1])

    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, stop)
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            llm_at(server, timeout=60.0).complete(asked(3))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert time.monotonic() - began < 5


# ---- bodies

USABLE = {
    "no usage": {k: v for k, v in completion(VERDICT).items() if k != "usage"},
    "usage null": completion(VERDICT, usage=None),
    "part of usage": completion(VERDICT, usage={"prompt_tokens": 10, "completion_tokens": None, "total_tokens": 10}),
    "floats": completion(VERDICT, usage={"prompt_tokens": 10.0, "completion_tokens": 5.0}),
    "negative usage": completion(VERDICT, usage={"prompt_tokens": -10, "completion_tokens": -5}),
    "parts": completion([{"type": "text", "text": VERDICT[:9]}, {"type": "text", "text": VERDICT[9:]}]),
    "finish null": completion(VERDICT, finish=None),
    "other finish": completion(VERDICT, finish="eos_token"),
}


@pytest.mark.parametrize("name", USABLE)
def test_a_text_is_used_whatever_is_missing_around_it(serve, name):
    server = serve((200, USABLE[name]))
    llm = llm_at(server, price_prompt=1000.0, price_completion=1000.0)
    reply = llm.complete(asked())[0]
    assert reply.text == VERDICT and reply.failure is None and len(server.bodies) == 1
    assert min(reply.prompt_tokens, reply.completion_tokens) >= 0 and llm.account.spent > 0


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (completion(None, finish="length", message={"reasoning_content": "hm ..."}), "empty", "still thinking"),
        (completion("", finish="length", message={"reasoning_content": "hm ..."}), "empty", "still thinking"),
        (completion(None, message={"refusal": "I cannot judge this."}), "filtered", "I cannot judge this"),
        (completion(None, finish="content_filter"), "filtered", "withheld"),
        (completion(None, finish="tool_calls"), "empty", "tool_calls"),
    ],
)
def test_an_answer_without_text_is_asked_once_and_its_tokens_count(serve, body, kind, words):
    server = serve((200, body))
    llm = llm_at(server, attempts=8)
    failure = llm.complete(asked())[0].failure
    assert failure.kind == kind and words in failure.detail and not failure.unanswered
    assert len(server.bodies) == 1 and (llm.account.prompt_tokens, llm.account.completion_tokens) == (10, 5)


def test_an_error_with_status_200_is_shown_and_asked_again_if_it_may_pass(serve):
    server = serve(lambda n, b: (200, error("Provider overloaded", code=502)) if n == 1 else (200, completion()))
    assert llm_at(server).complete(asked())[0].text == "ok" and len(server.bodies) == 2
    server = serve((200, error("No such thing", code=400)))
    failure = llm_at(server).complete(asked())[0].failure
    assert failure.kind == "bad_body" and "No such thing" in failure.detail and len(server.bodies) == 1


def test_lone_surrogates_in_a_reply_become_replacement_characters(serve, tmp_path):
    server = serve((200, json.dumps(completion("x\ud83d")).encode()))
    llm = CachedLLM(llm_at(server), tmp_path / "r.sqlite")
    assert llm.complete(asked())[0].text == "x\ufffd" == llm.complete(asked())[0].text and len(server.bodies) == 1
    llm.complete([LLMRequest((Message("user", "question \ud83d"),))])


# ---- log-probabilities


def test_choices_are_read_in_any_spelling_and_from_a_short_list(serve):
    server = serve((200, completion("good", logprobs=first_token(("good", -0.1), ("Bad", -2.4)))))
    row = llm_at(server).choice_logprobs(asked(), (GOOD, BAD))[0]
    assert 1 / (1 + np.exp(row[1] - row[0])) == pytest.approx(math.exp(-0.1) / (math.exp(-0.1) + math.exp(-2.4)), abs=1e-5)


@pytest.mark.parametrize(
    ("top", "p_good"),
    [
        ([("Good", math.log(0.6)), (" good", math.log(0.1)), ("Bad", math.log(0.3))], 0.7),
        ([("Good", math.log(0.9)), ("The", math.log(0.06))], 0.9 / 0.94),  # Bad has at most what is left
        ([("Bad", math.log(0.5)), ("The", math.log(0.02))], 0.02 / 0.52),  # Good has at most the last one's
        ([("**", math.log(0.95)), ("I", math.log(0.02))], None),
        ([("**Good", math.log(0.8)), ("ĠBad", math.log(0.2))], 0.8),
    ],
)
def test_what_a_short_list_leaves_open(top, p_good):
    good, bad = choice_row(top, (GOOD, BAD))
    found = math.exp(good) / (math.exp(good) + math.exp(bad))
    assert math.isnan(good) if p_good is None else found == pytest.approx(p_good, abs=1e-6)


@pytest.mark.parametrize("value", [0.5, math.inf, -math.inf, math.nan, True, "0", None, [-1], 10**400])
def test_what_is_no_log_probability_is_no_verdict(serve, value):
    fine = completion("Good", logprobs=first_token(("Good", -0.2), ("Bad", -2.0)))
    odd = completion("Good", logprobs=first_token(("Good", -0.2), ("Bad", value)))
    server = serve(lambda n, b: (200, fine if n == 1 else odd))
    llm = llm_at(server, concurrency=1)
    rows = llm.choice_logprobs(asked(2), (GOOD, BAD))
    assert not np.isnan(rows[0]).any() and np.isnan(rows[1]).all() and llm.failures[1].kind == "no_logprobs"


def test_one_row_without_logprobs_is_one_invalid_row_and_a_server_without_any_an_error(serve):
    given = completion("Good", logprobs=first_token(("Good", -0.2), ("Bad", -2.0)))
    odd = {2: completion(None, finish="content_filter"), 3: completion("Good", logprobs={"content": []}), 4: completion("Good")}
    server = serve(lambda n, b: (200, odd.get(n, given)))
    rows = llm_at(server, concurrency=1).choice_logprobs(asked(6), (GOOD, BAD))
    assert np.isnan(rows[:, 0]).tolist() == [False, True, True, True, False, False]
    server = serve((200, completion("Good")))
    with pytest.raises(UserError, match="top_logprobs.*binary"):
        llm_at(server, concurrency=2).choice_logprobs(asked(200), (GOOD, BAD))
    assert len(server.bodies) < 20


# ---- keys and addresses


def test_a_key_from_a_file_loses_its_line_end_and_a_strange_one_is_named(serve, monkeypatch):
    server = serve((200, completion()))
    monkeypatch.setenv("SOME_KEY", "abc-123\r\n")
    assert llm_at(server, key_variable="SOME_KEY").complete(asked())[0].text == "ok"
    assert server.headers[0]["authorization"] == "Bearer abc-123"
    for bad in ("钥匙", "two words", "a\x01b"):
        monkeypatch.setenv("SOME_KEY", bad)
        with pytest.raises(UserError, match="SOME_KEY") as found:
            llm_at(server, key_variable="SOME_KEY")
        assert bad not in str(found.value)
    monkeypatch.setenv("SOME_KEY", " \n")
    with pytest.raises(UserError, match="SOME_KEY is not set"):
        llm_at(server, key_variable="SOME_KEY")


@pytest.mark.parametrize(
    "url", ["https://anna:hunter2@host/v1", "https://hunter2@host/v1", "host/v1", "ftp://host/v1", "https:///v1", "https://h/v1?k=hunter2",
            "https://h:99999/v1", "https://h o/v1", "http://[::1/v1"],
)  # fmt: skip
def test_an_address_that_is_none_or_holds_a_password_is_refused_unseen(url, monkeypatch):
    with pytest.raises(UserError, match="base_url") as found:
        HttpConfig("m", url)
    assert "hunter2" not in str(found.value)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(UserError, match="OPENAI_BASE_URL") as found:
        OpenAILLM(HttpConfig("m", key_variable=""))
    assert "hunter2" not in str(found.value)


def test_a_key_in_the_place_of_its_variable_is_refused_unseen():
    with pytest.raises(UserError, match="key_variable") as found:
        HttpConfig("m", key_variable="sk-live-4711")
    assert "4711" not in str(found.value)


def test_the_identity_of_a_model_is_the_address_in_use(monkeypatch):
    names = set()
    for url in ("http://one/v1", "http://two/v1/", ""):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        names.add(OpenAILLM(HttpConfig("m", key_variable="")).name)
    assert names == {"http://one/v1/m", "http://two/v1/m", "https://api.openai.com/v1/m"}


# ---- budgets


def test_paid_answers_without_text_count_against_the_budget(serve):
    server = serve((200, completion(None, finish="length", message={"reasoning_content": "hm"})))
    llm = llm_at(server, attempts=4, price_prompt=1e4, price_completion=1e4, budget=10.0)
    replies = llm.complete(asked(100))  # each costs 0.15 and may cost 1.55
    assert replies[-1].failure.kind == "budget" and llm.account.spent == pytest.approx(0.15 * len(server.bodies))
    assert 10 - 1.6 < llm.account.spent <= 10


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": -5, "completion_tokens": 2}])
def test_a_server_without_token_counts_is_charged_the_most_it_can_have_cost(serve, usage):
    server = serve((200, completion(usage=usage)))
    llm = llm_at(server, price_prompt=1e4, price_completion=1e4, budget=10.0)
    llm.complete(asked(50))
    assert 10 - 1.6 < llm.account.spent <= 10 and llm.account.ledger.total.estimated == len(server.bodies) > 5


def test_attempts_without_a_response_may_have_been_billed(serve):
    server = serve(lambda n, b: (200, b'{"id": "x", "choices": [{"mess'))
    llm = llm_at(server, attempts=50, price_prompt=1e4, price_completion=1e4, budget=5.0)
    failure = llm.complete(asked())[0].failure
    assert failure.kind == "budget" and len(server.bodies) == 3 and llm.account.spent == 0


def test_requests_in_flight_do_not_use_the_budget_up(serve):
    server = serve((200, completion()))
    llm = llm_at(server, concurrency=16, price_prompt=1e4, price_completion=1e4, budget=9.0)
    replies = llm.complete(asked(40))  # 40 cost 6.0, and 16 in flight reserve 29
    assert all(r.failure is None for r in replies)
