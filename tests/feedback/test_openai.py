"""The chat API backend against a real server that speaks the wire format and injects faults."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from rlaif_jax.errors import UserError
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.cache import CachedLLM
from rlaif_jax.feedback.llm import LLMRequest, Message
from rlaif_jax.feedback.openai_llm import HttpConfig, OpenAILLM
from rlaif_jax.feedback.prompts import load_prompts
from rlaif_jax.feedback.verdicts import soft_verdicts, spoken_verdicts
from rlaif_jax.rewards.base import Sample
from rlaif_jax.rewards.judge import make_judge
from tests.feedback.fake_api import FakeApi

SECRET = "sk-test-4711-secret"


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setenv("TEST_API_KEY", SECRET)
    servers = []

    def start(**more) -> FakeApi:
        servers.append(FakeApi(**more))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def http(server: FakeApi, **more) -> HttpConfig:
    fields = {"concurrency": 8, "timeout": 0.5, "attempts": 12, "price_prompt": 2.0, "price_completion": 8.0}
    return HttpConfig(model="m", base_url=server.url, key_variable="TEST_API_KEY", **{**fields, **more})


def asked(count: int, text: str = "写一条祝福") -> list[LLMRequest]:
    return [LLMRequest((Message("user", f"{text}{i}"),), 32) for i in range(count)]


def test_replies_in_order_with_counts_and_the_key_in_the_header_only(api, tmp_path):
    server = api()
    llm = CachedLLM(OpenAILLM(http(server)), tmp_path / "replies.sqlite")
    replies = llm.complete(asked(20))
    assert [r.prompt_tokens for r in replies] == [len(f"写一条祝福{i}") for i in range(20)]
    assert all(r.text.startswith("愿你平安") and r.failure is None for r in replies)
    assert server.headers[0]["authorization"] == f"Bearer {SECRET}"
    llm.export(tmp_path / "transcript.jsonl")
    llm.close()
    for path in tmp_path.iterdir():
        assert SECRET.encode() not in path.read_bytes()


def test_faults_are_retried_within_the_concurrency_limit_and_billed_once(api, tmp_path):
    server = api(fault_rate=0.3, hang=0.8)
    inner = OpenAILLM(http(server))
    llm = CachedLLM(inner, tmp_path / "replies.sqlite")
    replies = llm.complete(asked(120))
    assert all(r.failure is None for r in replies)
    assert all(server.faults.values()), server.faults
    assert server.most_in_flight <= 8
    assert max(times for *_, times in server.billed.values()) == 1
    assert (inner.account.prompt_tokens, inner.account.completion_tokens) == server.tokens()
    prompt, completion = server.tokens()
    assert inner.account.spent == pytest.approx((2.0 * prompt + 8.0 * completion) / 1e6)
    before = server.requests
    assert llm.complete(asked(120)) == replies and server.requests == before


def test_failures_are_typed_and_never_a_reward(api):
    server = api()
    llm, prompts = OpenAILLM(http(server, attempts=2)), load_prompts("zh")
    failed = llm.complete(asked(1, "永远失败"))[0]
    assert failed.failure.kind == "server" and failed.text == ""
    items = [Sample("写祝福", "好祝福"), Sample("写祝福", "永远失败"), Sample("写祝福", "坏祝福")]
    for mode in ("soft", "binary", "k_vote"):
        result = make_judge(Agent(llm, prompts), ["不用套话"], mode)(items)
        assert result.valid.tolist() == [True, False, True]
        assert result.values[0] > 0.5 > result.values[2]


def test_soft_and_spoken_verdicts(api):
    server = api()
    llm, prompts = OpenAILLM(http(server)), load_prompts("zh")
    items = [("写祝福", "好祝福"), ("写祝福", "坏祝福")]
    assert np.allclose(soft_verdicts(Agent(llm, prompts), ["x"], items).p_good, [0.75, 0.25], atol=1e-6)
    spoken = spoken_verdicts(Agent(llm, prompts), ["x"], items)
    assert spoken.p_good.tolist() == [1.0, 0.0] and spoken.reasons[1] == "有套话"


def test_the_budget_stops_before_it_is_passed(api):
    server = api()
    llm = OpenAILLM(http(server, budget=0.01, concurrency=4))
    replies = llm.complete(asked(200))
    kinds = {r.failure.kind for r in replies if r.failure}
    assert kinds == {"budget"} and any(r.failure is None for r in replies)
    assert llm.account.spent <= 0.01


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match="NO_SUCH_KEY"):
        OpenAILLM(HttpConfig(model="m", key_variable="NO_SUCH_KEY"))
    with pytest.raises(UserError, match="model"):
        OpenAILLM(HttpConfig())
    with pytest.raises(UserError, match="price"):
        HttpConfig(model="m", budget=1.0)


CURATE = """
import sys
from pathlib import Path
from rich.console import Console
from rlaif_jax.data.records import Prompt
from rlaif_jax.feedback.cache import CachedLLM
from rlaif_jax.feedback.curate import CurateConfig, curate
from rlaif_jax.feedback.openai_llm import HttpConfig, OpenAILLM
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.prompts import load_prompts

url, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
http = HttpConfig("m", url, "TEST_API_KEY", concurrency=48, timeout=1.0, attempts=14)
llm, prompts = CachedLLM(OpenAILLM(http), folder / "replies.sqlite"), load_prompts("zh")
records = [Prompt(f"给{i}号朋友写一条祝福") for i in range(count)]
cfg = CurateConfig(candidates=2, source="llm", chunk=max(count // 10, 25))
agent = Agent(llm, prompts)
curate(records, agent, agent, None, cfg, folder / "items.jsonl", seed=0, console=Console(quiet=True))
"""


def curate_with_kills(api, folder, count: int, kills: int) -> FakeApi:
    """Curates `count` prompts against a faulty server; the process is killed -9 several times on the way."""
    server = api(fault_rate=0.3, hang=1.5)
    script = folder / "curate.py"
    script.write_text(textwrap.dedent(CURATE), encoding="utf-8")
    command = [sys.executable, str(script), server.url, str(folder), str(count)]
    env = os.environ | {"TEST_API_KEY": SECRET, "PYTHONPATH": os.getcwd(), "OPENAI_LOG": ""}
    calls_each = count * 10 // (kills + 1)
    for kill in range(kills):
        process = subprocess.Popen(command, env=env)
        while len(server.billed) < (kill + 1) * calls_each * 0.9 and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, env=env, check=True, timeout=900)
    return server


def check_curation(server: FakeApi, folder, count: int) -> None:
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [i["prompt"] for i in items] == [f"给{n}号朋友写一条祝福" for n in range(count)]  # none lost, none twice
    debates = [d for item in items for d in item["debates"]]
    assert all(d["final"] in (0, 1) for d in debates) and {d["final"] for d in debates} == {0, 1}
    assert sum(len(item["pairs"]) for item in items) > count // 5
    database = sqlite3.connect(folder / "replies.sqlite")
    kept = [json.loads(r) for (r,) in database.execute("SELECT reply FROM replies")]
    assert len(kept) == len(server.billed)  # whatever was billed is kept: nothing needs to be paid again
    totals = sum(r["prompt_tokens"] for r in kept), sum(r["completion_tokens"] for r in kept)
    assert totals == server.tokens()
    assert server.most_in_flight <= 48 and all(server.faults.values())


@pytest.mark.slow
def test_curation_survives_faults_and_a_kill(api, tmp_path):
    server = curate_with_kills(api, tmp_path, 50, 1)
    check_curation(server, tmp_path, 50)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_thousand_items_with_faults_and_kills(api, tmp_path):
    server = curate_with_kills(api, tmp_path, 1000, 3)
    check_curation(server, tmp_path, 1000)
