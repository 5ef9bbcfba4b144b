"""What a chat API sent: bytes in, a typed completion out. Any bytes are allowed; nothing here raises an exception."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from rlaif_jax.errors import masked, printable
from rlaif_jax.feedback.choices import choice_row
from rlaif_jax.feedback.llm import Failure, LLMReply, clean

_SENTENCE = 300  # characters of a server's sentence that are shown
_KEY = re.compile(r"\b(?:sk|pk|rk|gsk|xai|hf)[-_][\w*.-]{8,}", re.IGNORECASE)  # also one that the server has shortened
_LENGTH = ("length", "max_tokens", "MAX_TOKENS", "max_output_tokens")


@dataclasses.dataclass(frozen=True)
class Completion:
    """One response of a chat API.

    Attributes:
      reply: text and token counts (0 where the server gave none), or the failure.
      usage: (prompt tokens, completion tokens) as the server counted them, each None if it did not; None: nothing was computed.
      top: the likeliest first tokens with their log-probabilities; empty: none were sent.
      repeat: whether it may help to send the same request again.
      wait: seconds that the server asks to wait before that.
      unsure: there was no response, but the server may have billed the attempt.
    """

    reply: LLMReply
    usage: tuple[int | None, int | None] | None = None
    top: tuple[tuple[str, float], ...] = ()
    repeat: bool = False
    wait: float = 0.0
    unsure: bool = False


def failed(kind: str, detail: str, *, fatal: bool = False, **more: Any) -> Completion:
    """A completion that is a failure; `more`: other fields of `Completion`."""
    return Completion(LLMReply(failure=Failure(kind, detail, fatal)), **more)


def read_completion(content: bytes) -> Completion:
    """The completion in the body of a response with status 200."""
    body = _json(content)
    if not isinstance(body, dict):
        return failed("bad_body", "the response is no JSON object: " + sentence(content), repeat=True, unsure=True)
    usage = _usage(body.get("usage"))
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
        said = sentence(content)
        code = _code(body)
        detail = f"the response is an error: {said}" if body.get("error") else "the response has no choices"
        return failed("bad_body", detail, usage=usage if body.get("usage") else None, unsure=not body.get("error"),
                      repeat=code is None or not 400 <= code < 500 or code in (408, 409, 429))  # fmt: skip
    reply = _reply(choice, choice["message"], usage)
    top = _top(choice.get("logprobs")) if reply.failure is None else ()
    return Completion(reply, usage, top)


def read_choice(answer: Completion, choices: Sequence[str]) -> tuple[list[float], Failure | None]:
    """The log-probability of each choice as the first word of the completion, NaN with the cause where there is none."""
    if answer.reply.failure is not None:
        return [math.nan] * len(choices), answer.reply.failure
    if not answer.top:
        return [math.nan] * len(choices), Failure("no_logprobs", "the response has no log-probabilities")
    row = choice_row(answer.top, choices)
    if any(math.isnan(value) for value in row):
        likeliest = sentence(max(answer.top, key=lambda pair: pair[1])[0])
        return row, Failure("unreadable", f"the reply begins with {likeliest!r} and not with {' or '.join(choices)}")
    return row, None


def sentence(content: bytes | str | Any, secrets: Sequence[str] = ()) -> str:
    """The server's own sentence in an error body: short, on one line, without control characters and keys."""
    body = _json(content) if isinstance(content, bytes) else content
    text = _message(body)
    if text is None:
        text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
        text = re.sub(r"<(script|style)\b.*?</\1>|<[^>]{0,500}>", " ", text[:4000], flags=re.DOTALL | re.IGNORECASE)
    for secret in secrets:
        text = text.replace(secret, "(hidden)") if secret else text
    text = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in clean(printable(text[:4000])))
    text = _KEY.sub("(hidden)", masked(" ".join(text.split())))
    return text if len(text) <= _SENTENCE else text[: _SENTENCE - 4] + " ..."


def error_code(content: bytes) -> str:
    """The error's code or type in a body, such as "insufficient_quota"; "" where there is none."""
    body = _json(content)
    error = body.get("error", body) if isinstance(body, dict) else None
    found = [error.get(name) for name in ("code", "type")] if isinstance(error, dict) else []
    return " ".join(value for value in found if isinstance(value, str))


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):  # also for bytes that are no text, and integers of thousands of digits
        return None


def _message(body: Any) -> str | None:
    """The message in an error body, in the forms that servers use."""
    if not isinstance(body, dict):
        return body if isinstance(body, str) else None
    error = body.get("error", body)
    if isinstance(error, str):
        return error
    if isinstance(error, list) and error:
        return _message(error[0])
    for name in ("message", "detail", "msg", "error"):
        value = error.get(name) if isinstance(error, dict) else None
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, list):  # FastAPI's list of {"loc": ["body", "seed"], "msg": "..."}
            items = [item for item in value if isinstance(item, dict) and isinstance(item.get("msg"), str)]
            places = [item["loc"] if isinstance(item.get("loc"), list) else [] for item in items]
            if items:
                return "; ".join(
                    f"{'.'.join(str(p) for p in place if isinstance(p, (str, int)))[:80]}: {item['msg']}"
                    for place, item in zip(places, items, strict=True)
                )
    return None


def _code(body: dict[str, Any]) -> int | None:
    """The HTTP status that an error body with status 200 speaks of."""
    error = body.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == 3:
        return int(code)
    return code if type(code) is int else None


def _usage(value: Any) -> tuple[int | None, int | None]:
    """(prompt tokens, completion tokens), None where the server does not say. Negative counts are none."""
    if not isinstance(value, dict):
        return None, None
    prompt, completion, total = (_count(value.get(f"{name}_tokens")) for name in ("prompt", "completion", "total"))
    if completion is None and prompt is not None and total is not None and total >= prompt:
        completion = total - prompt if "completion_tokens" not in value or total > prompt else None
    return prompt, completion


def _count(value: Any) -> int | None:
    number = type(value) is int or (type(value) is float and value.is_integer())
    return int(value) if number and 0 <= value < 1e12 else None


def _reply(choice: dict[str, Any], message: dict[str, Any], usage: tuple[int | None, int | None]) -> LLMReply:
    counts = {"prompt_tokens": usage[0] or 0, "completion_tokens": usage[1] or 0}
    reason = choice.get("finish_reason")
    finish = "length" if reason in _LENGTH else "stop"
    text, refusal = _text(message.get("content")), message.get("refusal")
    thought = next((message[n] for n in ("reasoning_content", "reasoning") if isinstance(message.get(n), str)), "")
    if reason == "content_filter":
        return LLMReply(failure=Failure("filtered", "the API withheld the answer"), **counts)
    if not text and isinstance(refusal, str) and refusal.strip():
        return LLMReply(failure=Failure("filtered", f"the model refused: {sentence(refusal)}"), **counts)
    if not text and (text is None or thought or finish == "length"):
        why = "the token limit was reached while the model was still thinking" if thought else f"finish_reason {reason!r:.40}"
        return LLMReply(failure=Failure("empty", f"the answer has no text ({why})"), **counts)
    return LLMReply(clean(text), finish_reason=finish, **counts)


def _text(content: Any) -> str | None:
    """The text of a message: a string, or the text parts of a list."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if texts else None
    return content if isinstance(content, str) else None


def _top(logprobs: Any) -> tuple[tuple[str, float], ...]:
    """The likeliest first tokens. Empty if the server sent none, or anything that is no log-probability."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    first = content[0] if isinstance(content, list) and content else None
    listed = first.get("top_logprobs") if isinstance(first, dict) else None
    found = []
    for item in listed if isinstance(listed, list) else ():
        token, value = (item.get("token"), item.get("logprob")) if isinstance(item, dict) else (None, None)
        if not isinstance(token, str) or type(value) not in (int, float) or not -1e6 < value <= 1e-4:
            return ()
        found.append((clean(token), min(float(value), 0.0)))
    return tuple(found) if sum(math.exp(value) for _, value in found) < 1.01 else ()
