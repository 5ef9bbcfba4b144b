"""Removes a model's thinking from its reply. This module alone knows how models mark it.

A reply may hold closed thinking, thinking whose opening mark was in the prompt (only the closing mark arrives), or thinking that
the token limit cut off. What is said inside is a draft: it is never a verdict and never a part of an answer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from rlaif_jax.feedback.llm import LLMReply

_NAMES = r"(?:think|thinking|thought|thoughts|reasoning|reflection|analysis|scratchpad)"
_MARK = re.compile(
    # <think>, </Thinking>, <seed:think>
    rf"<\s{{0,3}}(?P<slash>/?)\s{{0,3}}(?:\w{{1,20}}:)?{_NAMES}(?![\w-])[^<>\n]{{0,60}}>"
    r"|\[(?P<bracket>/?)think\]|◁(?P<triangle>/?)think▷"
    r"|<\|(?P<bar>/?)think(?:ing)?\|>"
    rf"|<\|(?:begin|start|(?P<end>end))_(?:of_)?{_NAMES}\|>"
    r"|<\|channel>\s{0,3}(?:thought|thinking|analysis)|(?P<channel><channel\|>)",
    re.IGNORECASE,
)
# Channels: "<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...". The first mark may lack.
_CHANNEL = re.compile(
    r"(?:<\|channel\|>\s{0,3}(?P<name>\w{1,30})|\b(?P<bare>analysis|commentary|final))\b[^<\n]{0,60}"
    r"(?:<\|constrain\|>[^<\n]{0,40})?<\|message\|>",
    re.IGNORECASE,
)
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start|channel)\|>", re.IGNORECASE)
# The same without its control tokens: "analysisWe need ... assistantfinalGood".
_BARE_CHANNEL = re.compile(r"\A\s{0,9}(?:assistant)?analysis(?=[A-Z\d\"'(<{])")
_BARE_FINAL = re.compile(r"assistant\s?final")
_WRAPPER = re.compile(
    r"\A\s*<(?P<name>answer|final_answer|final|response|output|solution)>(?P<inner>.*?)(?:</(?P=name)>\s*)?\Z",
    re.IGNORECASE | re.DOTALL,
)
_SOLUTION_MARK = re.compile(r"<\|(?:begin|start|end)_(?:of_)?(?:solution|response)\|>", re.IGNORECASE)

# Why a reply cannot be used: a sentence for each cause, for users and for the model that is asked again.
PROBLEMS = {
    "thinking": "it holds thinking only, without an answer after it", "empty": "it is empty",
    "cut": "the reply was cut off by the token limit",
}  # fmt: skip


class Said(NamedTuple):
    """What a model said, without its thinking.

    `cause`: why the reply cannot be used, or "": "failed" (there is no reply), "thinking" (thinking only, or unfinished
    thinking), "empty", or "cut" (the token limit cut it off; `text` is what there is).
    """

    text: str
    cause: str = ""


def said(reply: LLMReply) -> Said:
    """What a reply says."""
    if reply.failure is not None:
        return Said("", "failed")
    found = without_thinking(reply.text)
    return Said(found.text, "cut") if not found.cause and reply.finish_reason == "length" else found


def without_thinking(text: str) -> Said:
    """A text without thinking; the cause is "", "thinking" or "empty". The time is linear in the length of the text."""
    body, unfinished = _final_channel(text)
    if not unfinished:
        body, unfinished = _outside_marks(body)
    body = _SOLUTION_MARK.sub("", body).strip()
    if wrapped := _WRAPPER.match(body):
        body = wrapped["inner"].strip()
    if unfinished:
        return Said("", "thinking")
    if not body:
        return Said("", "thinking" if text.strip() else "empty")
    return Said(body)


def _final_channel(text: str) -> tuple[str, bool]:
    """The content of the channel "final", and whether there are channels but none of that name; the text without channels."""
    channels = list(_CHANNEL.finditer(text))
    if channels:
        ends = [m.start() for m in channels[1:]] + [len(text)]
        parts = [(m["name"] or m["bare"], text[m.end() : end]) for m, end in zip(channels, ends, strict=True)]
        finals = [_CHANNEL_END.split(part, maxsplit=1)[0] for name, part in parts if name.lower() == "final"]
        return "\n".join(finals), not finals
    if _BARE_CHANNEL.match(text):
        finals = list(_BARE_FINAL.finditer(text))
        return (text[finals[-1].end() :], False) if finals else ("", True)
    return text, "<|channel|>" in text.lower()


def _outside_marks(text: str) -> tuple[str, bool]:
    """The text outside all marks of thinking, which may be nested, and whether the last thinking is unfinished."""
    kept: list[str] = []
    depth = start = 0
    for mark in _MARK.finditer(text):
        empty = mark[0].endswith("/>")
        closes = bool(mark["slash"] or mark["bracket"] or mark["triangle"] or mark["bar"] or mark["end"] or mark["channel"])
        if depth == 0 and closes:
            kept.clear()  # the opening mark was in the prompt: all text so far is thinking
        elif depth == 0:
            kept.append(text[start : mark.start()])
        depth = max(depth + (0 if empty else -1 if closes else 1), 0)
        if depth == 0:
            start = mark.end()
    if depth == 0:
        kept.append(text[start:])
    return "".join(kept), depth > 0
