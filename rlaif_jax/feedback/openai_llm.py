"""An OpenAI-compatible chat API (OpenAI, vLLM, SGLang, llama.cpp, ...) as an `LLM`, through the official client."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import email.utils
import math
import os
import random
import re
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import numpy as np

from rlaif_jax.errors import UserError
from rlaif_jax.feedback.api_bodies import Completion, error_code, failed, read_choice, read_completion, sentence
from rlaif_jax.feedback.http_config import HttpConfig, api_key, checked_url
from rlaif_jax.feedback.llm import Failure, LLMReply, LLMRequest, OnReply, OnRow, clean
from rlaif_jax.feedback.spending import Account, Ledger

_LONGEST_WAIT = 120.0  # seconds that a server may ask to wait; after that, the request has failed
_HOPELESS = 8  # requests in a row without an answer, or with one refusal, after which no more are sent
_CONNECT = 5.0  # seconds to reach the address
_FIRST_TRIES = 3  # attempts to reach an address that never answered
_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "account_deactivated")


class OpenAILLM:
    """An `LLM` over HTTP. The API key is read from the environment and never written to a log, cache or error.

    Attributes:
      name: address, model and further parameters: the identity of the model in caches.
      account: what it costs.
      failures: see `LLM`.
    """

    def __init__(self, cfg: HttpConfig, ledger: Ledger | None = None):
        if not cfg.model:
            raise UserError("the chat API needs a model name; set the field `model`")
        api_key(cfg)
        try:
            import openai
        except ImportError as error:
            raise UserError("a chat API needs the openai package: pip install 'rlaif_jax[judge]'") from error
        address = cfg.base_url or os.environ.get("OPENAI_BASE_URL", "").strip() or "https://api.openai.com/v1"
        self._url = checked_url(address, "base_url" if cfg.base_url else "the environment variable OPENAI_BASE_URL")
        more = "".join(f" {k}={v!r}" for k, v in sorted(cfg.parameters.items()))
        more += f" min_temperature={cfg.min_temperature:g}" if cfg.min_temperature else ""
        self.name = f"{self._url}/{cfg.model}{more}"
        self.account = Account(cfg.price_prompt, cfg.price_completion, cfg.budget, ledger)
        self.failures: Mapping[int, Failure] = {}
        self._cfg, self._openai = cfg, openai
        self._halted: Failure | None = None  # why no more requests of this call are sent
        self._answered = self._gave_logprobs = False
        self._in_a_row, self._last = 0, ""  # requests without an answer since the last one with

    def complete(self, requests: Sequence[LLMRequest], on_reply: OnReply | None = None) -> list[LLMReply]:
        """See `LLM.complete`."""
        return self._all(requests, {}, lambda i, answer: answer.reply, on_reply)

    def choice_logprobs(self, requests: Sequence[LLMRequest], choices: Sequence[str], on_row: OnRow | None = None) -> np.ndarray:
        """See `LLM.choice_logprobs`; needs a server that returns `top_logprobs`. `choices.choice_row` reads them."""
        requests = [dataclasses.replace(r, max_tokens=1, temperature=0.0) for r in requests]
        failures: dict[int, Failure] = {}
        without = 0

        def to_row(i: int, answer: Completion) -> list[float]:
            nonlocal without
            row, failure = read_choice(answer, choices)
            self._gave_logprobs |= bool(answer.top)
            if failure is not None:
                failures[i] = failure
                without += failure.kind == "no_logprobs"
                if without >= _HOPELESS and not self._gave_logprobs:
                    self._halted = failure
            return row

        rows = self._all(requests, {"logprobs": True, "top_logprobs": self._cfg.top_logprobs}, to_row, on_row)
        self.failures = failures
        if without and not self._gave_logprobs:
            raise UserError("the chat API returns no top_logprobs; use the judge mode binary or k_vote")
        return np.array(rows, np.float32).reshape(len(requests), len(choices))

    def _all(self, requests, extra: dict[str, Any], convert: Callable[[int, Completion], Any], on_reply) -> list[Any]:
        """The converted completion of every request. Runs in its own thread, since the caller may have an event loop."""
        running: concurrent.futures.Future = concurrent.futures.Future()

        async def main() -> list[Any]:
            running.set_result((asyncio.get_running_loop(), asyncio.current_task()))
            return await self._gather(requests, extra, convert, on_reply)

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            future = pool.submit(asyncio.run, main())
            try:
                return future.result()
            except BaseException:  # Ctrl-C: the requests in flight are given up
                with contextlib.suppress(RuntimeError):
                    loop, task = running.result()
                    loop.call_soon_threadsafe(task.cancel)
                raise

    async def _gather(self, requests, extra, convert, on_reply) -> list[Any]:
        slots, pace = asyncio.Semaphore(self._cfg.concurrency), _Pace(self._cfg.requests_per_minute)
        self._halted, self._in_a_row = None, 0
        timeout = self._openai.Timeout(self._cfg.timeout, connect=min(self._cfg.timeout, _CONNECT))
        async with self._openai.AsyncOpenAI(
            api_key=api_key(self._cfg), base_url=self._url, timeout=timeout, max_retries=0
        ) as client:

            async def one(i: int, request: LLMRequest) -> Any:
                async with slots:
                    out = convert(i, await self._ask(client, request, extra, pace))
                if on_reply:
                    on_reply(i, out)
                return out

            jobs: list[Coroutine] = [one(i, r) for i, r in enumerate(requests)]
            return list(await asyncio.gather(*jobs))

    async def _ask(self, client, request: LLMRequest, extra: dict[str, Any], pace: _Pace) -> Completion:
        """The API's completion, or a failure after all attempts."""
        for attempt in range(self._cfg.attempts):
            if self._halted is not None:
                return Completion(LLMReply(failure=self._halted))
            await pace.wait()
            answer = await self._attempt(client, request, extra)
            failure = answer.reply.failure
            if failure is None or not answer.repeat or failure.fatal:
                break
            if failure.kind == "connection" and not self._answered and attempt + 1 >= min(_FIRST_TRIES, self._cfg.attempts):
                answer = dataclasses.replace(answer, reply=LLMReply(failure=dataclasses.replace(failure, fatal=True)))
                break
            if attempt + 1 < self._cfg.attempts:
                await asyncio.sleep(max(answer.wait, random.uniform(0.5, 1.0) * min(0.5 * 2**attempt, 8.0)))
        self._notice(answer.reply.failure)
        return answer

    def _notice(self, failure: Failure | None) -> None:
        """Stops sending where no further request of this call can be answered: a wrong key, a dead address, an outage."""
        if failure is None or failure.kind in ("filtered", "empty"):
            self._answered, self._in_a_row = True, 0
            return
        if failure.kind == "budget":  # a shorter request may still be within it
            return
        if failure.unanswered:
            self._in_a_row += 1
        else:  # refused: perhaps every request is, for the same reason
            self._in_a_row = self._in_a_row + 1 if not self._answered and failure.detail == self._last else 1
        self._last = failure.detail
        if failure.fatal or self._in_a_row >= max(_HOPELESS, self._cfg.concurrency):
            self._halted = dataclasses.replace(failure, fatal=True)

    async def _attempt(self, client, request: LLMRequest, extra: dict[str, Any]) -> Completion:
        """One attempt, with its price reserved before and settled after it."""
        # A token has at least one byte; the rest is for the marks of a chat template.
        most = 64 + sum(len(clean(m.content).encode()) + 16 for m in request.messages), request.max_tokens
        while not self.account.reserve(most):
            if self.account.fits(most):  # it does, when those in flight turn out cheaper than reserved
                await asyncio.sleep(0.02)
                continue
            spent = f"the budget of {self._cfg.budget:g} would be exceeded, {self.account.spent:.6g} is spent"
            return failed("budget", f"{spent} (feedback.http.budget)")
        usage, unsure = None, True
        try:
            answer = await self._call(client, request, extra)
            usage, unsure = answer.usage, answer.unsure
            return answer
        finally:  # also if the attempt is given up
            self.account.settle(most, usage, unsure)

    async def _call(self, client, request: LLMRequest, extra: dict[str, Any]) -> Completion:
        o, cfg, secrets = self._openai, self._cfg, (api_key(self._cfg),)
        options = {
            "follow_redirects": False,
            # With this header, a server that supports it computes a repeated request once, also after a crash of this process.
            "headers": {"Idempotency-Key": request.key(self.name)},
        }
        try:
            async with asyncio.timeout(cfg.timeout):
                body = _body(cfg, request, extra)
                return read_completion(await client.post("/chat/completions", body=body, cast_to=bytes, options=options))
        except (TimeoutError, o.APIConnectionError) as error:
            cause = error.__cause__ or error
            kind, said = type(cause).__name__, sentence(str(cause), secrets)
            if kind != "ConnectTimeout" and isinstance(error, (TimeoutError, o.APITimeoutError)):
                return failed("timeout", f"no answer within {cfg.timeout:g} s (feedback.http.timeout)", repeat=True, unsure=True)
            detail = f"{kind} at {self._url}{': ' + said if said else ''} (feedback.http.base_url)"
            return failed("connection", detail, repeat=True, unsure=kind not in ("ConnectError", "ConnectTimeout"))
        except o.APIStatusError as error:
            return self._refused(error.response, request)
        except (o.OpenAIError, ValueError) as error:
            return failed("bad_body", sentence(f"{type(error).__name__}: {error}", secrets), repeat=True, unsure=True)

    def _refused(self, response: Any, request: LLMRequest) -> Completion:
        """What a response with another status than 200 means."""
        status, content, cfg = response.status_code, response.content, self._cfg
        said = f"HTTP {status}: {sentence(content, (api_key(cfg),))}"
        if 300 <= status < 400:
            there = sentence(response.headers.get("location", ""))
            detail = f"HTTP {status}: a redirect to {there}, which is not followed (feedback.http.base_url is {self._url})"
            return failed("rejected", detail, fatal=True)
        if status in (401, 403):
            where = f"the key in the environment variable {cfg.key_variable}" if cfg.key_variable else "no key is sent"
            return failed("rejected", f"{said} ({where}: feedback.http.key_variable)", fatal=status == 401 or not self._answered)
        if status in (404, 405):
            return failed("rejected", f"{said} (feedback.http.model is {cfg.model!r}, base_url {self._url})", fatal=True)
        if status == 402 or (status == 429 and any(code in error_code(content) for code in _QUOTA)):
            return failed("rate_limit", f"{said} (the quota or balance at the API is used up)", fatal=True)
        wait = _retry_after(response.headers)
        again = (status in (408, 409, 429) or status >= 500) and wait <= _LONGEST_WAIT
        if status == 429:
            return failed("rate_limit", said, repeat=again, wait=wait)
        if status >= 500 or again:
            return failed("server", said, repeat=again, wait=wait)
        return failed("rejected", said + _hint(said, cfg))


def _body(cfg: HttpConfig, request: LLMRequest, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The request's JSON."""
    body = {
        "model": cfg.model, "messages": [{"role": m.role, "content": clean(m.content)} for m in request.messages],
        cfg.max_tokens_name: request.max_tokens, "temperature": max(request.temperature, cfg.min_temperature),
        "seed": request.seed, **extra, **cfg.parameters,
    }  # fmt: skip
    return {name: value for name, value in body.items() if value is not None}


def _hint(said: str, cfg: HttpConfig) -> str:
    """Which field changes the parameter that a server names in its refusal."""
    fields = {
        "max_completion_tokens": "max_tokens_name=max_completion_tokens", "max_tokens": "max_tokens_name=max_completion_tokens",
        "top_logprobs": "top_logprobs=5, or judge.mode=binary", "logprobs": "judge.mode=binary or k_vote, which need none",
        "temperature": 'min_temperature=0.01, or parameters={"temperature": None}', "seed": 'parameters={"seed": None}',
    }  # fmt: skip
    name = next((n for n in fields if re.search(rf"\b{n}\b", said)), "")
    return f" (feedback.http.{fields[name]})".replace("feedback.http.judge", "judge") if name else ""


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait; 0 where it does not say."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "")
        with contextlib.suppress(ValueError):
            seconds = float(value) / unit
            return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    return 0.0


class _Pace:
    """Spaces requests evenly, at most `per_minute` of them."""

    def __init__(self, per_minute: float):
        self._gap, self._next = 60.0 / per_minute if per_minute else 0.0, 0.0

    async def wait(self) -> None:
        now = time.monotonic()
        self._next = max(self._next, now) + self._gap
        await asyncio.sleep(self._next - self._gap - now)
