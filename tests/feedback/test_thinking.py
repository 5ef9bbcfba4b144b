"""Replies without their thinking, however the model marks it and wherever it ends."""

import time

import pytest

from rlaif_jax.feedback.llm import Failure, LLMReply
from rlaif_jax.feedback.thinking import said, without_thinking

DRAFT, FINAL = '{"verdict": 0, "reason": "draft"}', "Good: it keeps every rule"

CLOSED = [
    f"<think>{DRAFT}</think>{FINAL}",
    f"<think>\n{DRAFT}\n</think>\n\n{FINAL}\n",
    f"<thinking>{DRAFT}</thinking>{FINAL}",
    f"<Thought>{DRAFT}</Thought> {FINAL}",
    f"< THINK >{DRAFT}</ THINK >{FINAL}",
    f'<thinking effort="high">{DRAFT}</thinking>{FINAL}',
    f"<seed:think>{DRAFT}</seed:think>{FINAL}",
    f"<reasoning>{DRAFT}</reasoning>\n<answer>{FINAL}</answer>",
    f"[THINK]{DRAFT}[/THINK]{FINAL}",
    f"◁think▷{DRAFT}◁/think▷{FINAL}",
    f"<|begin_of_thought|>{DRAFT}<|end_of_thought|><|begin_of_solution|>{FINAL}<|end_of_solution|>",
    f"<|START_THINKING|>{DRAFT}<|END_THINKING|><|START_RESPONSE|>{FINAL}<|END_RESPONSE|>",
    f"<think>a <think>{DRAFT}</think> b</think>{FINAL}",
    f"<think>{DRAFT}</think><think>again</think>{FINAL}",
    f"<think></think>{FINAL}",
    f"<think/>{FINAL}",
    f"{DRAFT} hm</think>{FINAL}",
    f"one</think>{DRAFT}</think>{FINAL}",
    f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{FINAL}<|return|>",
    f"analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{FINAL}",
    f"{DRAFT}<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>{FINAL}<|end|>",
    f"<|channel|>commentary to=x<|message|>{DRAFT}<|call|><|channel|>final<|message|>{FINAL}",
    f"analysisWe weigh it: {DRAFT}assistantfinal{FINAL}",
    f"<|channel>thought\n{DRAFT}<channel|>{FINAL}",
    FINAL,
]
UNFINISHED = [
    f"<think>{DRAFT}", f"<think>\n{DRAFT}\nso I would say Good", f"<thinking>{DRAFT}", f"<THOUGHT>{DRAFT}", f"[think]{DRAFT}",
    f"{FINAL}<think>but {DRAFT}",
    f"<think>a <think>{DRAFT}</think> {FINAL}", f"<think>a</think><think>{DRAFT}", f"{DRAFT}</think>",
    f"<think>{DRAFT}</think>", f"<|channel|>analysis<|message|>{DRAFT}", f"<|channel|>analysis {DRAFT}",
    f"analysisWe weigh {DRAFT}",
    f"<|start_of_thought|>{DRAFT}", f"<|channel>thought\n{DRAFT}",
]  # fmt: skip


@pytest.mark.parametrize("text", CLOSED)
def test_what_is_said_after_the_thinking(text):
    assert without_thinking(text) == (FINAL, "")
    assert said(LLMReply(text)) == (FINAL, "") and said(LLMReply(text, finish_reason="length")) == (FINAL, "cut")


@pytest.mark.parametrize("text", UNFINISHED)
def test_unfinished_thinking_says_nothing(text):
    assert without_thinking(text) == ("", "thinking")
    assert said(LLMReply(text, finish_reason="length")) == ("", "thinking")


def test_other_causes_and_texts_that_only_look_like_thinking():
    assert said(LLMReply(" \n")) == ("", "empty") and said(LLMReply(failure=Failure("server"))) == ("", "failed")
    for text in ("I think it is fine", "a < b and c > d", "<thinker>x</thinker>", "final thoughts: well",
                 "analysis of the text: fine", "[thinking]", "<b>bold</b>", "think> x"):  # fmt: skip
        assert without_thinking(text) == (text, "")


@pytest.mark.parametrize(
    "part",
    ["<", "<think>", "</think>", "<think", "< ", "final<|message|>", "<|channel|>", "<|channel|>final<|message|>", "analysis ",
     "assistantfinal", "<answer>", "</answer> ", "[/think]", "◁", "<|end", " "],
)  # fmt: skip
def test_the_time_is_linear(part):
    start = time.process_time()
    without_thinking(part * (400_000 // len(part)))
    assert time.process_time() - start < 1.5
