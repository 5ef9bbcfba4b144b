"""The interface of all language models: a batch of requests in, a batch of replies out.

    OpenAILLM (any chat API) | LocalLLM (a checkpoint on the mesh) | RecordedLLM (a transcript)
        --CachedLLM--> sends no request again that was answered
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
    """One request to a model.

    Attributes:
      messages: the chat; the last message is the user's.
      max_tokens: limit on the reply, in the model's tokens.
      temperature: 0 = greedy.
      seed: seeds the sampler; makes otherwise equal requests (candidates, votes) different.
      prompt_hash: hash of the prompt files behind the messages. If the files change, so does the cache key.
    """

    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    prompt_hash: str = ""

    def key(self, model: str) -> str:
        """Key of this request to `model` in caches and transcripts, hexadecimal."""
        text = json.dumps([model, dataclasses.asdict(self)], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    def choice_key(self, model: str, choices: Sequence[str]) -> str:
        """Key of the question which of `choices` comes next."""
        return "|".join((self.key(model), *choices))


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why there is no reply.

    kind: "timeout", "rate_limit", "server", "connection", "rejected" (the API refused the request), "bad_body" (the response
    was not a chat completion), "filtered", "budget" or "not_recorded".
    """

    kind: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class LLMReply:
    """A reply: text and token counts, or a failure (with empty text).

    finish_reason: "stop", or "length" if `max_tokens` truncated the text.
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

    `complete` returns one reply per request, in order. If a request fails, its reply holds a failure; no exception is raised.
    `on_reply(index, reply)` is called as soon as each reply arrives, so that it can be saved.

    `choice_logprobs` returns the log-probability (nats) of each of `choices` as the assistant's next word: (B, C) float32,
    NaN in rows that failed. UserError if the model cannot return log-probs. `on_row(index, row)` is called for each row.
    """

    name: str

    def complete(self, requests: Sequence[LLMRequest], on_reply: OnReply | None = None) -> list[LLMReply]: ...

    def choice_logprobs(
        self, requests: Sequence[LLMRequest], choices: Sequence[str], on_row: OnRow | None = None
    ) -> np.ndarray: ...


def spending(llm: LLM) -> dict[str, float]:
    """What a paid model has cost in this process (see `CachedLLM.spending`); empty for other models."""
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
