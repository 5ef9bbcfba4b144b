"""The interface of all language models: a batch of requests in, a batch of replies out.

    OpenAILLM (any chat API) | LocalLLM (a checkpoint on the mesh) | RecordedLLM (a transcript)
        --CachedLLM--> sends no request again that was answered
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
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
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def choice_key(self, model: str, choices: Sequence[str]) -> str:
        """Key of the question which of `choices` comes next."""
        return "|".join((self.key(model), *choices))


# Failures that say nothing about the request: later, or after a change of key, address or budget, it may be answered.
_UNANSWERED = ("timeout", "rate_limit", "server", "connection", "bad_body", "budget")


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why there is no reply, or none that can be used.

    Attributes:
      kind: "timeout", "rate_limit", "server", "connection", "bad_body" (the response was not a chat completion), "budget",
        "rejected" (the API refused the request), "filtered", "empty" (no text, for example since the model was still thinking at
        the token limit), "thinking" (thinking only, or unfinished thinking), "cut" (the token limit cut the text off),
        "no_logprobs", "unreadable" (the text is no verdict) or "not_recorded".
      detail: the cause in words, with the server's own sentence.
      fatal: no request will be answered until the user changes something, such as the key.
    """

    kind: str
    detail: str = ""
    fatal: bool = False

    def __post_init__(self):
        object.__setattr__(self, "detail", clean(self.detail))

    @property
    def unanswered(self) -> bool:
        """Whether the same request may be answered later. Then nothing that needs the answer may be marked as done."""
        return self.fatal or self.kind in _UNANSWERED

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


def worst(failures: Sequence[Failure | None]) -> Failure | None:
    """The failure to report of several: a fatal one, else one that left a request unanswered, else the first."""
    found = [f for f in failures if f is not None]
    return min(found, key=lambda f: (not f.fatal, not f.unanswered), default=None)


@dataclasses.dataclass(frozen=True)
class LLMReply:
    """A reply: text and token counts, or a failure (with empty text).

    finish_reason: "stop", or "length" if `max_tokens` truncated the text.

    Every reply enters the library here, so its text has no lone surrogate.
    """

    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = "stop"
    failure: Failure | None = None

    def __post_init__(self):
        object.__setattr__(self, "text", clean(self.text))


OnReply = Callable[[int, LLMReply], None]
OnRow = Callable[[int, Sequence[float]], None]


class LLM(Protocol):
    """A language model. `name` identifies model and weights; it is part of every cache key.

    `complete` returns one reply per request, in order. If a request fails, its reply holds a failure; no exception is raised.
    `on_reply(index, reply)` is called as soon as each reply arrives, so that it can be saved.

    `choice_logprobs` returns the log-probability (nats) of each of `choices` as the assistant's next word: (B, C) float32,
    NaN in rows that failed. UserError if the model cannot return log-probs. `on_row(index, row)` is called for each row.

    A model may have an attribute `failures`: row -> Failure of the last call of `choice_logprobs` (see `row_failures`).
    """

    name: str

    def complete(self, requests: Sequence[LLMRequest], on_reply: OnReply | None = None) -> list[LLMReply]: ...

    def choice_logprobs(
        self, requests: Sequence[LLMRequest], choices: Sequence[str], on_row: OnRow | None = None
    ) -> np.ndarray: ...


def row_failures(llm: LLM, rows: np.ndarray) -> list[Failure | None]:
    """Why the rows of the last `choice_logprobs` are NaN; None for those that are not."""
    known: Mapping[int, Failure] = getattr(llm, "failures", {})
    unknown = Failure("no_logprobs", "the model gave no log-probabilities")
    return [known.get(i, unknown) if bad else None for i, bad in enumerate(np.isnan(rows).any(axis=1).tolist())]


def clean(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which no file can hold."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def request_to_json(request: LLMRequest) -> dict[str, Any]:
    """The request as a JSON-able dict, for transcripts."""
    return dataclasses.asdict(request)


def request_from_json(values: dict[str, Any]) -> LLMRequest:
    """The request that `request_to_json` wrote."""
    return LLMRequest(**{**values, "messages": tuple(Message(**m) for m in values["messages"])})


def reply_to_json(reply: LLMReply) -> dict[str, Any]:
    """The reply as a JSON-able dict."""
    return dataclasses.asdict(reply)


def reply_from_json(values: Any) -> LLMReply:
    """The reply that `reply_to_json` wrote. ValueError for anything else."""
    kinds = {"text": str, "prompt_tokens": int, "completion_tokens": int, "finish_reason": str}
    if not isinstance(values, dict) or (unknown := values.keys() - kinds.keys() - {"failure"}):
        raise ValueError(f"expected a reply, found {'the field ' + sorted(unknown)[0] if isinstance(values, dict) else values!r}")
    for name, kind in kinds.items():
        value = values.get(name, kind())
        if type(value) is not kind or (kind is int and value < 0):
            raise ValueError(f"{name} is {value!r:.100}")
    failure = values.get("failure")
    try:
        return LLMReply(**{**values, "failure": None if failure is None else Failure(**failure)})
    except TypeError as error:
        raise ValueError(f"failure is {failure!r:.100}") from error


def logprobs_from_json(values: Any) -> list[float]:
    """A row of log-probabilities. ValueError for anything else, and for one that is positive or not finite."""
    if not isinstance(values, list) or not values or not all(type(v) in (int, float) for v in values):
        raise ValueError(f"expected a list of log-probabilities, found {values!r:.100}")
    row = [float(v) for v in values]
    if not all(math.isfinite(v) and v <= 1e-4 for v in row):
        raise ValueError(f"a log-probability is finite and at most 0, found {values!r:.100}")
    return row
