"""The settings of a chat API, its address and its key."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from rlaif_jax.errors import UserError, holds_secret
from rlaif_jax.ranges import Money, Range, check_fields

# Parameters that have fields of their own, or would break the protocol or the budget.
_OWN = ("model", "messages", "stream", "n", "logprobs", "top_logprobs", "max_tokens", "max_completion_tokens")


@dataclasses.dataclass(frozen=True)
class HttpConfig:
    """A chat API.

    Attributes:
      model: name of the model at the API.
      base_url: URL of the API; empty: the client's default (OPENAI_BASE_URL, else OpenAI).
      key_variable: environment variable with the API key; empty for a server that needs no key.
      concurrency: largest number of requests in flight.
      requests_per_minute: rate limit for requests; 0 = no limit.
      timeout: seconds for one attempt, from sending the request to the last byte of the response.
      attempts: attempts per request if it fails with HTTP 408, 409, 429 or 5xx, a timeout or a broken connection, or if the
        response is not a chat completion. Waits grow exponentially, with jitter; Retry-After is honoured up to two minutes.
      price_prompt, price_completion: price per million prompt tokens and completion tokens, in any currency.
      budget: spending limit of the run, over all its stages and starts, in the same currency. A request that could exceed it is
        not sent; 0 = no limit.
      max_tokens_name: the parameter that limits a reply: "max_tokens", or "max_completion_tokens" for models that refuse the first.
      min_temperature: requests at a lower temperature are sent with this one, for servers that refuse temperature 0.
      top_logprobs: number of first tokens whose log-probabilities are asked for, for the judge modes soft, checklist and pairwise.
      parameters: further parameters of every request, by name; None leaves one out: {"seed": None, "temperature": None,
        "reasoning_effort": "low"}.
      cache: file of stored replies, which several runs may share, also at the same time; empty: replies.sqlite in the run folder.
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
    max_tokens_name: str = "max_tokens"
    min_temperature: Annotated[float, Range(0, 2)] = 0.0
    top_logprobs: Annotated[int, Range(1, 100)] = 20
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    cache: str = ""

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
        if self.base_url:
            checked_url(self.base_url, "base_url")
        if self.max_tokens_name not in ("max_tokens", "max_completion_tokens"):
            raise UserError(f"max_tokens_name is {self.max_tokens_name!r}; expected max_tokens or max_completion_tokens")
        try:
            json.dumps(self.parameters, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(f"parameters: expected values that JSON can hold ({error})") from error
        if taken := sorted(set(_OWN) & set(self.parameters)):
            raise UserError(f"parameters: {taken[0]!r} cannot be set here; see model, max_tokens_name and top_logprobs")


def checked_url(url: str, where: str) -> str:
    """The URL without a slash at its end. UserError (which never shows a password) unless it is http(s) with a host alone."""
    url = url.strip()
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        parts, usable = urlsplit(""), False
    if "@" in parts.netloc or "@" in url.partition("/v1")[0]:
        raise UserError(f"{where} holds a user name or password; keys belong into the environment variable of key_variable")
    if not usable or parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        raise UserError(f"{where} is not the address of an API; expected for example https://HOST/v1, without ? and #")
    return url.rstrip("/")


def api_key(cfg: HttpConfig) -> str:
    """The API key, from the environment. UserError that names the variable if it is missing or cannot be a key."""
    if not cfg.key_variable:
        return "none"
    key = os.environ.get(cfg.key_variable, "").strip()
    if not key:
        raise UserError(f"the environment variable {cfg.key_variable} is not set; set it to the API key")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"the environment variable {cfg.key_variable} holds characters that no key has; set it to the key alone")
    return key
