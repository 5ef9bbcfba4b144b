"""An OpenAI-compatible chat API (OpenAI, vLLM, SGLang, llama.cpp, ...) as an `LLM`, through the official client."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any

import numpy as np

from rlaif_jax.errors import UserError, holds_secret
from rlaif_jax.feedback.choices import choice_row
from rlaif_jax.feedback.llm import Failure, LLMReply, LLMRequest, OnReply, OnRow
from rlaif_jax.ranges import Money, Range, check_fields


@dataclasses.dataclass(frozen=True)
class HttpConfig:
    """A chat API.

    Attributes:
      model: name of the model at the API.
      base_url: URL of the API; empty: the client's default (OPENAI_BASE_URL, else OpenAI).
      key_variable: environment variable with the API key; empty for a server that needs no key.
      concurrency: largest number of requests in flight.
      requests_per_minute: rate limit for requests; 0 = no limit.
      timeout: seconds for one attempt.
      attempts: attempts per request if it fails with HTTP 408, 409, 429 or 5xx, a timeout or a broken connection, or if the
        response is not a chat completion. Waits grow exponentially, with jitter; Retry-After is honoured.
      price_prompt, price_completion: price per million prompt tokens and completion tokens, in any currency.
      budget: spending limit of this process, in the same currency. A request that could exceed it is not sent; 0 = no limit.
    """

    model: str = ""
    base_url: str = ""
    key_variable: str = "OPENAI_API_KEY"
    concurrency: Annotated[int, Range(1, 4096)] = 16
    requests_per_minute: Annotated[float, Range(0, 1e6)] = 0.0
    timeout: Annotated[float, Range(0, 1e5, above=True)] = 60.0
    attempts: Annotated[int, Range(1, 1000)] = 8
    price_prompt: Money = 0.0
    price_completion: Money = 0.0
    budget: Money = 0.0

    def __post_init__(self):
        check_fields(self)
        name = self.key_variable
        looks_like_a_key = holds_secret(name) or re.fullmatch(r"(?=.*\d)[A-Za-z0-9]{20,}", name)
        if looks_like_a_key or not re.fullmatch(r"[A-Za-z_]\w{0,63}|", name):
            raise UserError(
                "http.key_variable is the name of an environment variable, such as OPENAI_API_KEY, not the key itself (what is "
                "there is not shown here): export OPENAI_API_KEY=... and leave the field as it is"
            )
        if self.budget and not (self.price_prompt or self.price_completion):
            raise UserError("budget needs price_prompt and price_completion (money per million tokens)")


class Account:
    """Tokens and money spent by this process. Requests in flight reserve their largest cost, so the budget holds for them too."""

    def __init__(self, cfg: HttpConfig):
        self._cfg, self._lock, self._reserved = cfg, threading.Lock(), 0.0
        self.replies = self.prompt_tokens = self.completion_tokens = 0

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Price of this number of tokens."""
        return (prompt_tokens * self._cfg.price_prompt + completion_tokens * self._cfg.price_completion) / 1e6

    @property
    def spent(self) -> float:
        """Price of all replies so far."""
        return self.cost(self.prompt_tokens, self.completion_tokens)

    def reserve(self, amount: float) -> bool:
        """Reserves `amount`. False if the budget does not allow it."""
        with self._lock:
            if self._cfg.budget and self.spent + self._reserved + amount > self._cfg.budget:
                return False
            self._reserved += amount
            return True

    def settle(self, reserved: float, usage: Any) -> None:
        """Replaces a reservation by the `usage` of the reply (None: there was no reply)."""
        with self._lock:
            self._reserved -= reserved
            if usage is not None:
                self.replies += 1
                self.prompt_tokens += usage.prompt_tokens
                self.completion_tokens += usage.completion_tokens


class _Pace:
    """Spaces requests evenly, at most `per_minute` of them."""

    def __init__(self, per_minute: float):
        self._gap, self._next = 60.0 / per_minute if per_minute else 0.0, 0.0

    async def wait(self) -> None:
        now = time.monotonic()
        self._next = max(self._next, now) + self._gap
        await asyncio.sleep(self._next - self._gap - now)


class OpenAILLM:
    """An `LLM` over HTTP. The API key is read from the environment and never written to a log, cache or error."""

    def __init__(self, cfg: HttpConfig):
        if not cfg.model:
            raise UserError("the chat API needs a model name; set the field `model`")
        if cfg.key_variable and not os.environ.get(cfg.key_variable):
            raise UserError(f"the environment variable {cfg.key_variable} is not set; set it to the API key")
        try:
            import openai
        except ImportError as error:
            raise UserError("a chat API needs the openai package: pip install 'rlaif_jax[judge]'") from error
        self.name, self.account = f"{cfg.base_url}/{cfg.model}", Account(cfg)
        self._cfg, self._openai = cfg, openai

    def complete(self, requests: Sequence[LLMRequest], on_reply: OnReply | None = None) -> list[LLMReply]:
        """See `LLM.complete`."""

        def to_reply(answer: Any) -> LLMReply:
            return answer if isinstance(answer, LLMReply) else _reply(answer)

        return self._all(requests, {}, to_reply, on_reply)

    def choice_logprobs(self, requests: Sequence[LLMRequest], choices: Sequence[str], on_row: OnRow | None = None) -> np.ndarray:
        """See `LLM.choice_logprobs`; needs a server that returns `top_logprobs`.

        All spellings of a choice count (see `choices.choice_row`).
        """
        requests = [dataclasses.replace(r, max_tokens=1, temperature=0.0) for r in requests]

        def to_row(answer: Any) -> list[float]:
            if isinstance(answer, LLMReply):
                return [math.nan] * len(choices)
            return _choice_row(answer, choices)

        rows = self._all(requests, {"logprobs": True, "top_logprobs": 20}, to_row, on_row)
        return np.array(rows, np.float32).reshape(len(requests), len(choices))

    def _all(self, requests, extra: dict[str, Any], convert: Callable[[Any], Any], on_reply) -> list[Any]:
        """The converted completion of every request. Runs in its own thread, since the caller may have an event loop."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, self._gather(requests, extra, convert, on_reply)).result()

    async def _gather(self, requests, extra, convert, on_reply) -> list[Any]:
        slots, pace = asyncio.Semaphore(self._cfg.concurrency), _Pace(self._cfg.requests_per_minute)
        key = os.environ.get(self._cfg.key_variable, "") if self._cfg.key_variable else ""
        async with self._openai.AsyncOpenAI(
            api_key=key or "none", base_url=self._cfg.base_url or None, timeout=self._cfg.timeout,
            max_retries=self._cfg.attempts - 1,
        ) as client:  # fmt: skip

            async def one(i: int, request: LLMRequest) -> Any:
                async with slots:
                    await pace.wait()
                    out = convert(await self._ask(client, request, extra))
                if on_reply:
                    on_reply(i, out)
                return out

            jobs: list[Coroutine] = [one(i, r) for i, r in enumerate(requests)]
            return list(await asyncio.gather(*jobs))

    async def _ask(self, client, request: LLMRequest, extra: dict[str, Any]) -> Any:
        """The API's completion, or an `LLMReply` with a failure."""
        # A token has at least one byte, so this is an upper bound on the cost of the request.
        most = self.account.cost(sum(len(m.content.encode()) + 16 for m in request.messages), request.max_tokens)
        if not self.account.reserve(most):
            return LLMReply(failure=Failure("budget", f"the budget of {self._cfg.budget:g} would be exceeded"))
        usage = None
        try:
            for attempt in range(self._cfg.attempts):  # the client retries failed calls; retries after a bad body are done here
                answer = await self._call(client, request, extra)
                last = attempt == self._cfg.attempts - 1
                if isinstance(answer, LLMReply) and answer.failure.kind == "bad_body" and not last:
                    await asyncio.sleep(random.uniform(0.5, 1.0) * min(2**attempt / 4, 8.0))
                    continue
                usage = None if isinstance(answer, LLMReply) else answer.usage
                return answer
        finally:
            self.account.settle(most, usage)

    async def _call(self, client, request: LLMRequest, extra: dict[str, Any]) -> Any:
        o = self._openai
        try:
            answer = await client.chat.completions.create(
                model=self._cfg.model, messages=[dataclasses.asdict(m) for m in request.messages],
                max_tokens=request.max_tokens, temperature=request.temperature, seed=request.seed,
                # With this header, a server that supports it computes a repeated request once, also after a crash of this process.
                extra_headers={"Idempotency-Key": request.key(self.name)}, **extra,
            )  # fmt: skip
            problem = _malformed(answer)
            return answer if not problem else LLMReply(failure=Failure("bad_body", problem))
        except o.APITimeoutError:
            return LLMReply(failure=Failure("timeout", f"no answer within {self._cfg.timeout:g} s"))
        except o.APIConnectionError as error:
            return LLMReply(failure=Failure("connection", type(error.__cause__).__name__))
        except o.RateLimitError:
            return LLMReply(failure=Failure("rate_limit", f"still refused after {self._cfg.attempts} attempts"))
        except o.APIStatusError as error:
            kind = "server" if error.status_code >= 500 else "rejected"
            return LLMReply(failure=Failure(kind, f"HTTP {error.status_code}"))
        except (o.APIError, json.JSONDecodeError, ValueError) as error:
            return LLMReply(failure=Failure("bad_body", type(error).__name__))


def _malformed(answer: Any) -> str:
    """What is wrong with a body that should be a chat completion, or ""."""
    choices = getattr(answer, "choices", None)
    if not choices or getattr(choices[0], "message", None) is None:
        return "the body has no choices"
    if not isinstance(choices[0].message.content, str) and choices[0].finish_reason != "content_filter":
        return "the body has no text"
    usage = getattr(answer, "usage", None)
    counts = (getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None))
    return "" if all(isinstance(n, int) for n in counts) else "the body has no token counts"


def _reply(answer: Any) -> LLMReply:
    choice = answer.choices[0]
    counts = {"prompt_tokens": answer.usage.prompt_tokens, "completion_tokens": answer.usage.completion_tokens}
    if choice.finish_reason == "content_filter":
        return LLMReply(failure=Failure("filtered", "the API withheld the answer"), **counts)
    return LLMReply(choice.message.content, finish_reason=choice.finish_reason or "stop", **counts)


def _choice_row(answer: Any, choices: Sequence[str]) -> list[float]:
    content = getattr(answer.choices[0].logprobs, "content", None) if answer.choices[0].logprobs else None
    if not content or not content[0].top_logprobs:
        raise UserError("the chat API returns no top_logprobs; use the judge mode binary or k_vote")
    return choice_row([(t.token, t.logprob) for t in content[0].top_logprobs], choices)
