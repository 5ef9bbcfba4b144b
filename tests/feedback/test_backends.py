"""What every language model behind the protocol does, whatever it is: a checkpoint, a chat API, a cache, a transcript."""

import jax
import numpy as np
import pytest

from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.feedback.cache import CachedLLM, RecordedLLM
from rlaif_jax.feedback.llm import LLMRequest, Message
from rlaif_jax.feedback.local_llm import LocalLLM
from rlaif_jax.feedback.openai_llm import HttpConfig, OpenAILLM
from rlaif_jax.models import transformer
from rlaif_jax.models.model_config import ModelConfig
from tests.feedback.fake_api import FakeApi

GOOD, BAD = "Good", "Bad"
TEXTS = ("写一条春节祝福", "给老师写两条中秋祝福", "写一条春节祝福", "祝")
REFUSED = "永远失败" * 30  # the API answers 500 for good; too long for the checkpoint; not in the transcript


def requests(*texts, **more):
    return [LLMRequest((Message("user", t),), **{"max_tokens": 8, **more}) for t in texts]


@pytest.fixture(scope="module")
def api():
    server = FakeApi()
    yield server
    server.close()


def flax(tmp_path, api, place):
    tokenizer = Tokenizer.train([*TEXTS, "Good Bad 评判"] * 3, 420, tmp_path / "tokenizer")
    cfg = ModelConfig(width=32, ffn=64, layers=2, heads=4, kv_heads=2, head_dim=8).with_vocab(tokenizer.vocab_size)
    params = transformer.init(cfg, jax.random.key(1))
    return LocalLLM(params, cfg, tokenizer, place, name="tiny", batch_size=2, max_length=64)


def http(tmp_path, api, place):
    return OpenAILLM(HttpConfig("m", api.url, "", attempts=2, timeout=5))


def cached(tmp_path, api, place):
    return CachedLLM(http(tmp_path, api, place), tmp_path / "replies.sqlite")


def recorded(tmp_path, api, place):
    llm = cached(tmp_path, api, place)
    llm.complete(requests(*TEXTS))
    llm.choice_logprobs(requests(*TEXTS), (GOOD, BAD))
    llm.export(tmp_path / "transcript.jsonl")
    return RecordedLLM(tmp_path / "transcript.jsonl")


@pytest.fixture(params=[flax, http, cached, recorded], ids=lambda make: make.__name__)
def llm(request, tmp_path, api, one_device):
    return request.param(tmp_path, api, one_device)


def test_replies_come_in_order_each_reported_once(llm):
    seen = {}
    replies = llm.complete(requests(*TEXTS), lambda i, reply: seen.update({i: reply}))
    assert [seen[i] for i in range(4)] == replies and len(seen) == 4
    assert all(r.failure is None and r.prompt_tokens > 0 and r.finish_reason in ("stop", "length") for r in replies)
    assert replies[0] == replies[2]
    assert llm.complete(requests(*TEXTS)) == replies


def test_a_failure_is_typed_and_harms_no_other(llm):
    replies = llm.complete(requests(TEXTS[0], REFUSED, TEXTS[1]))
    assert replies[1].failure.kind in ("server", "rejected", "not_recorded") and not replies[1].text
    assert replies[0].failure is None and replies[2].failure is None


def test_choices_are_log_probabilities_and_a_failure_has_none(llm):
    seen = {}
    rows = llm.choice_logprobs(requests(TEXTS[0], REFUSED, TEXTS[1]), (GOOD, BAD), lambda i, row: seen.update({i: row}))
    assert rows.shape == (3, 2) and rows.dtype == np.float32
    assert np.isnan(rows[1]).all() and np.all(np.exp(rows[[0, 2]]).sum(axis=1) <= 1 + 1e-5)
    for i in (0, 2):
        np.testing.assert_allclose(seen[i], rows[i], rtol=1e-6)


def test_nothing_asked_nothing_answered(llm):
    assert llm.complete([]) == [] and llm.choice_logprobs([], (GOOD, BAD)).shape == (0, 2)
