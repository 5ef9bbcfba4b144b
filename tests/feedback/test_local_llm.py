"""A checkpoint of ours as a language model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.llm import LLMRequest, Message
from rlaif_jax.feedback.local_llm import LocalLLM, packs
from rlaif_jax.feedback.prompts import load_prompts
from rlaif_jax.feedback.verdicts import soft_verdicts
from rlaif_jax.models import ops, transformer
from rlaif_jax.models.model_config import ModelConfig


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    texts = ["写一条春节祝福给老师", "愿您平安喜乐，万事如意。", "Good Bad A B 评判", "给朋友写两条中秋祝福"] * 3
    tokenizer = Tokenizer.train(texts, 420, tmp_path_factory.mktemp("tokenizer"))
    cfg = ModelConfig(width=32, ffn=64, layers=2, heads=4, kv_heads=2, head_dim=8).with_vocab(tokenizer.vocab_size)
    params = jax.tree.map(lambda w: w * 3.0, transformer.init(cfg, jax.random.key(1)))
    return params, cfg, tokenizer


def model(parts, place, **more):
    params, cfg, tokenizer = parts
    return LocalLLM(params, cfg, tokenizer, place, name="tiny", **{"batch_size": 4, **more})


def ask(*texts, **more):
    return [LLMRequest((Message("user", t),), **{"max_tokens": 6, **more}) for t in texts]


TEXTS = ("写一条春节祝福", "给朋友写两条中秋祝福给朋友写两条中秋祝福给朋友", "祝", "愿您平安", "万事如意", "给老师")


def test_a_reply_depends_on_its_request_alone(parts, one_device, eight_devices):
    requests = ask(*TEXTS, temperature=1.0, seed=5)
    together = model(parts, one_device).complete(requests)
    alone = [model(parts, one_device, batch_size=1).complete([r])[0] for r in requests]
    assert [r.text for r in together] == [r.text for r in alone]
    assert [r.text for r in model(parts, eight_devices, batch_size=8).complete(requests)] == [r.text for r in together]
    other = model(parts, one_device).complete(ask(*TEXTS, temperature=1.0, seed=6))
    assert [r.text for r in other] != [r.text for r in together]
    assert all(r.completion_tokens <= 6 for r in together)


def test_greedy_replies_follow_the_full_forward(parts, one_device):
    params, cfg, tokenizer = parts
    request = ask("给老师写一条祝福", max_tokens=5)[0]
    reply = model(parts, one_device).complete([request])[0]
    ids = tokenizer.encode_messages([{"role": "user", "content": "给老师写一条祝福"}])
    for _ in range(reply.completion_tokens):
        tokens = jnp.array([ids])
        ones = jnp.ones_like(tokens)
        hidden = transformer.forward(params, cfg, tokens, ones, ops.positions_of(ones))
        ids.append(int(jnp.argmax(ops.logits(hidden[:, -1], ops.output_matrix(params, cfg)))))
    assert reply.text == tokenizer.decode(ids[-reply.completion_tokens :])
    assert reply.prompt_tokens + reply.completion_tokens == len(ids)


def test_soft_is_the_softmax_over_the_two_answer_tokens(parts, one_device, eight_devices):
    params, cfg, tokenizer = parts
    prompts, items = load_prompts("embedded"), [("写一条", "愿您平安"), ("给老师写一条祝福", "万事如意。")]
    for place in (one_device, eight_devices):
        found = soft_verdicts(Agent(model(parts, place, batch_size=8), prompts), ["不用套话"], items).p_good
        for (query, response), p in zip(items, found, strict=True):
            chat = prompts.messages("detector", principles=["不用套话"], query=query, response=response)
            tokens = jnp.array([tokenizer.encode_messages([dataclasses.asdict(m) for m in chat])])
            ones = jnp.ones_like(tokens)
            hidden = transformer.forward(params, cfg, tokens, ones, ops.positions_of(ones))
            logits = np.asarray(ops.logits(hidden[:, -1], ops.output_matrix(params, cfg)))[0]
            good, bad = (logits[tokenizer.encode_response(w)[0]] for w in ("Good", "Bad"))
            assert p == pytest.approx(float(np.exp(good) / (np.exp(good) + np.exp(bad))), abs=1e-5)


@pytest.mark.slow
def test_requests_that_begin_alike_share_a_row_and_get_the_same_answers(parts, one_device, eight_devices):
    """A checklist's questions: read together in packed rows, asked one by one, and by the full forward of each."""
    params, cfg, tokenizer = parts
    begin = "写一条春节祝福给老师愿您平安喜乐，万事如意。" * 3
    texts = [begin + rule for rule in ("套话", "写完整", "称呼", "一", "切合场合")] + list(TEXTS) + [begin] * 2
    llm, requests = model(parts, one_device, batch_size=8), ask(*texts)
    encoded = [tokenizer.encode_messages([{"role": "user", "content": t}]) for t in texts]
    made = packs(encoded, 4096)
    assert made[0].members == (0, 1, 2, 3, 4) and made[0].prefix >= 2 * len(made[0].members)
    assert sorted(i for pack in made for i in pack.members) == list(range(len(texts)))
    together = llm.choice_logprobs(requests, ("Good", "Bad"))
    alone = np.concatenate([llm.choice_logprobs([r], ("Good", "Bad")) for r in requests])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    spread = model(parts, eight_devices, batch_size=8).choice_logprobs(requests, ("Good", "Bad"))
    np.testing.assert_allclose(together, spread, atol=1e-5)
    good = tokenizer.encode_response("Good")[0]
    for ids, found in zip(encoded, together, strict=True):
        ones = jnp.ones((1, len(ids)), jnp.int32)
        hidden = transformer.forward(params, cfg, jnp.array([ids]), ones, ops.positions_of(ones))
        logp = jax.nn.log_softmax(ops.logits(hidden[:, -1], ops.output_matrix(params, cfg)))
        np.testing.assert_allclose(found[0], logp[0, good], atol=1e-5)


def test_what_does_not_fit_is_a_failure_and_what_cannot_be_told_apart_an_error(parts, one_device):
    llm = model(parts, one_device, max_length=24)
    replies = llm.complete(ask("祝", "给朋友写两条中秋祝福" * 8))
    assert replies[0].failure is None and replies[1].failure.kind == "rejected"
    scores = llm.choice_logprobs(ask("祝", "给朋友写两条中秋祝福" * 8), ("Good", "Bad"))
    assert np.isfinite(scores[0]).all() and np.isnan(scores[1]).all()
    with pytest.raises(UserError, match="same token"):
        llm.choice_logprobs(ask("祝"), ("Good", "Good"))


@pytest.mark.slow
def test_a_long_text_is_read_in_a_smaller_batch(parts, one_device, eight_devices):
    """One essay among the texts must not make a full batch of its width: attention would take memory for all of it."""
    llm, requests = model(parts, one_device, batch_size=128), ask(*TEXTS, "给朋友写两条中秋祝福" * 120, "万事如意" * 200)
    shapes = []
    run = llm._choose
    llm._choose = lambda params, tokens, *rest: shapes.append(tokens.shape) or run(params, tokens, *rest)
    scores = llm.choice_logprobs(requests, ("Good", "Bad"))
    assert max(width for _, width in shapes) >= 512 and max(rows * width**2 for rows, width in shapes) <= 128 * 256**2
    replies = llm.complete(requests)
    small = model(parts, eight_devices, batch_size=8)
    np.testing.assert_allclose(scores, small.choice_logprobs(requests, ("Good", "Bad")), atol=1e-5)
    assert [r.text for r in replies] == [r.text for r in small.complete(requests)]
