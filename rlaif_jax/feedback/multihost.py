"""One language model for several processes.

There are two ways. With one process, neither changes anything.

* `AsksOnFirst`: every process makes the same calls. Process 0 alone sends the requests and broadcasts the replies. A chat
  API is then paid once, and its cache has one writer.
* `lead`: work that writes files (curation, the principle game) runs on process 0 alone. A model on the mesh needs all
  devices, so the other processes wait for its calls and take part in each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from rlaif_jax.errors import UserError
from rlaif_jax.feedback.llm import (
    LLM,
    Failure,
    LLMReply,
    LLMRequest,
    OnReply,
    OnRow,
    reply_from_json,
    reply_to_json,
    request_from_json,
    request_to_json,
    row_failures,
)
from rlaif_jax.feedback.local_llm import LocalLLM
from rlaif_jax.sharding.hosts import broadcast, is_first, on_first

T = TypeVar("T")
_CHANNEL = "led model"


class AsksOnFirst:
    """An `LLM` that only process 0 calls. `make()` builds the model there; `inner` is None in the other processes."""

    def __init__(self, make: Callable[[], LLM]):
        self.inner: LLM | None = None
        self.failures: Mapping[int, Failure] = {}

        def build() -> str:
            self.inner = make()
            return self.inner.name

        self.name = on_first(build, "model")

    def complete(self, requests: Sequence[LLMRequest], on_reply: OnReply | None = None) -> list[LLMReply]:
        """See `LLM.complete`."""
        told = on_first(lambda: [reply_to_json(r) for r in self.inner.complete(requests)], "replies")
        replies = [reply_from_json(r) for r in told]
        for i, reply in enumerate(replies if on_reply else ()):
            on_reply(i, reply)
        return replies

    def choice_logprobs(
        self, requests: Sequence[LLMRequest], choices: Sequence[str], on_row: OnRow | None = None
    ) -> np.ndarray:
        """See `LLM.choice_logprobs`."""

        def ask() -> dict[str, Any]:
            rows = self.inner.choice_logprobs(requests, choices)
            causes = [failure and dataclasses.asdict(failure) for failure in row_failures(self.inner, rows)]
            return {"rows": rows.tolist(), "failures": causes}

        told = on_first(ask, "rows")
        self.failures = {i: Failure(**cause) for i, cause in enumerate(told["failures"]) if cause}
        for i, row in enumerate(told["rows"] if on_row else ()):
            on_row(i, row)
        return np.array(told["rows"], np.float32).reshape(len(requests), len(choices))


class _Led:
    """On process 0: a model on the mesh. Every call is broadcast to the other processes first."""

    def __init__(self, inner: LLM, number: int):
        self.name, self._inner, self._number = inner.name, inner, number

    def complete(self, requests: Sequence[LLMRequest], on_reply: OnReply | None = None) -> list[LLMReply]:
        self._tell(requests, None)
        return self._inner.complete(requests, on_reply)

    def choice_logprobs(
        self, requests: Sequence[LLMRequest], choices: Sequence[str], on_row: OnRow | None = None
    ) -> np.ndarray:
        self._tell(requests, list(choices))
        return self._inner.choice_logprobs(requests, choices, on_row)

    def _tell(self, requests: Sequence[LLMRequest], choices: list[str] | None) -> None:
        asked = [request_to_json(r) for r in requests]
        broadcast({"model": self._number, "requests": asked, "choices": choices}, _CHANNEL)


def lead(work: Callable[..., T], *llms: LLM) -> T:
    """Runs work(*llms) on process 0; the other processes join in its models' calls. All get its result (JSON) or its error."""
    if jax.process_count() == 1:
        return work(*llms)

    def led() -> T:
        try:
            own = [_Led(m, i) if isinstance(m, LocalLLM) else getattr(m, "inner", m) for i, m in enumerate(llms)]
            return work(*own)
        finally:
            broadcast(None, _CHANNEL)

    if not is_first():
        _follow(llms)
    return on_first(led, "led work")


def _follow(llms: Sequence[LLM]) -> None:
    """Joins in the model calls of process 0 until it broadcasts the end."""
    while (call := broadcast(None, _CHANNEL)) is not None:
        llm, requests = llms[call["model"]], [request_from_json(r) for r in call["requests"]]
        try:
            if call["choices"] is None:
                llm.complete(requests)
            else:
                llm.choice_logprobs(requests, call["choices"])
        except UserError:  # process 0 had the same error and broadcasts it
            continue
