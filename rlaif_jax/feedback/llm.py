"""The one protocol behind which every language model stands: a batch of requests in, a batch of replies out.

    OpenAILLM (any chat API) | LocalLLM (a checkpoint on the mesh) | RecordedLLM (a transcript)
        --CachedLLM--> never asks twice what was answered once
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a chat; role is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class LLMRequest:
    """What is asked.

    Attributes:
      messages: the chat; the last message is the user's.
      max_tokens: bound on the reply, in the model's tokens.
      temperature: 0 = greedy.
      seed: tells apart requests that are otherwise equal (candidates, votes), and seeds the sampler.
      prompt_hash: hash of the prompt files that made the messages, so that a change of them is a change of the key.
    """

    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    prompt_hash: str = ""

    def key(self, model: str) -> str:
        """Hexadecimal identity of this request to `model`, for caches and transcripts."""
        text = json.dumps([model, dataclasses.asdict(self)], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    def choice_key(self, model: str, choices: Sequence[str]) -> str:
        """Identity of the question which of `choices` comes next."""
        return "|".join((self.key(model), *choices))


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why there is no reply.

    kind: "timeout", "rate_limit", "server", "connection", "rejected" (the API refused the request itself), "bad_body"
    (what came was no chat completion), "filtered", "budget" or "not_recorded".
    """

    kind: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class LLMReply:
    """What came back: text and token counts, or a failure (then the text is empty).

    finish_reason: "stop", or "length" where `max_tokens` cut the text.
    """

    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = "stop"
    failure: Failure | None = None


OnReply = Callable[[int, LLMReply], None]
OnRow = Callable[[int, Sequence[float]], None]


class LLM(Protocol):
    """A language model. `name` identifies model and weights; it is part of every cache key.

    `complete` answers every request, in order; a request that could not be answered has a reply with a failure, never
    an exception. `on_reply(index, reply)` is called as each reply comes, so that it can be saved before the next.

    `choice_logprobs` gives, for each request, the log-probability (nats) of each of `choices` as the next word of the
    assistant: (B, C) float32, NaN in rows that failed. UserError where the model cannot tell. `on_row(index, row)` is
    `on_reply` for these.
    """

    name: str

    def complete(self, requests: Sequence[LLMRequest], on_reply: OnReply | None = None) -> list[LLMReply]: ...

    def choice_logprobs(
        self, requests: Sequence[LLMRequest], choices: Sequence[str], on_row: OnRow | None = None
    ) -> np.ndarray: ...


def spending(llm: LLM) -> dict[str, float]:
    """What a paid model has cost in this process (see `CachedLLM.spending`); empty for a model that costs nothing."""
    return llm.spending() if hasattr(llm, "spending") else {}


def request_to_json(request: LLMRequest) -> dict[str, Any]:
    """The request as a JSON-able dict, for transcripts."""
    return dataclasses.asdict(request)


def request_from_json(values: dict[str, Any]) -> LLMRequest:
    """The request that `request_to_json` wrote."""
    return LLMRequest(**{**values, "messages": tuple(Message(**m) for m in values["messages"])})


def reply_to_json(reply: LLMReply) -> dict[str, Any]:
    """The reply as a JSON-able dict."""
    return dataclasses.asdict(reply)


def reply_from_json(values: dict[str, Any]) -> LLMReply:
    """The reply that `reply_to_json` wrote."""
    failure = values.get("failure")
    return LLMReply(**{**values, "failure": Failure(**failure) if failure else None})
