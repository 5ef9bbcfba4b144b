"""Replies that must be JSON: parsed leniently where only one reading is possible, else asked for again, else invalid."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlaif_jax.feedback.llm import LLM, LLMReply, LLMRequest, Message
from rlaif_jax.language import Language, language_of

# field -> its type, or its allowed values
Schema = Mapping[str, type | tuple]


class ReplyError(ValueError):
    """A reply that cannot be parsed. The message is sent to the model when it is asked again."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A parsed reply (`value`), or why there is none (`problem`). `text` is the model's last reply."""

    value: dict[str, Any] | None
    text: str = ""
    problem: str = ""


def parse_json(text: str, schema: Schema) -> dict[str, Any]:
    """The fields of `schema` from the one JSON object in `text`.

    Prose, a code fence or a thinking block around it, and trailing commas are allowed. Several different objects, a missing
    field, or a value outside the schema raise ReplyError: guessing would invent a verdict.
    """
    body = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    found = [o for o in _objects(body) if any(name in o for name in schema)]
    if not found:
        raise ReplyError(f"no JSON object with the fields {', '.join(schema)} was found")
    if any(o != found[0] for o in found[1:]):
        raise ReplyError("several different JSON objects were found; exactly one is expected")
    return {name: _checked(name, found[0].get(name), kind) for name, kind in schema.items()}


def _objects(text: str) -> list[dict[str, Any]]:
    """The outermost JSON objects in a text."""
    decoder, found, at = json.JSONDecoder(strict=False), [], 0
    text = re.sub(r",(\s*[}\]])", r"\1", text) if not _reads(text) else text
    while (at := text.find("{", at)) >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            at += 1
            continue
        if isinstance(value, dict):
            found.append(value)
        at = end
    return found


def _reads(text: str) -> bool:
    try:
        json.loads(text)
        return True
    except json.JSONDecodeError:
        return False


def _checked(name: str, value: Any, kind: type | tuple) -> Any:
    if isinstance(kind, tuple):
        if isinstance(value, str):  # accept "1" for 1, and "good" for "Good"
            value = next((k for k in kind if str(k).lower() == value.strip().lower()), value)
        if isinstance(value, bool) or value not in kind:
            raise ReplyError(f"field {name}: expected one of {', '.join(map(str, kind))}, found {value!r}")
        return value
    if kind is list and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return value
    if kind is str and isinstance(value, str):
        return value.strip()
    if kind is int and not isinstance(value, bool) and str(value).strip().lstrip("-").isdigit():
        return int(value)
    expected = {list: "a list of texts", int: "a whole number"}.get(kind, "a text")
    raise ReplyError(f"field {name}: expected {expected}, found {value!r}")


Parse = Callable[[str], dict[str, Any]]


def ask(
    llm: LLM, requests: Sequence[LLMRequest], parse: Parse, attempts: int = 3, *, language: Language | None = None
) -> list[Answer]:
    """Sends requests and parses the replies. If parsing fails, asks again and states the error, up to `attempts` times in all.

    `parse(text)` raises ReplyError. A failed request, a truncated reply, or a reply that cannot be parsed at the last
    attempt gives an answer without a value. `language`: of the sentence that asks again; None: that of the request.
    """
    answers: list[Answer | None] = [None] * len(requests)
    todo = dict(enumerate(requests))
    for attempt in range(attempts):
        replies = llm.complete(list(todo.values()))
        again = {}
        for i, reply in zip(todo, replies, strict=True):
            answers[i] = _read(reply, parse)
            if answers[i].value is None and reply.failure is None and attempt < attempts - 1:
                again[i] = _asked_again(requests[i], reply, answers[i].problem, language)
        todo = again
        if not todo:
            break
    return answers


def _read(reply: LLMReply, parse: Parse) -> Answer:
    if reply.failure is not None:
        return Answer(None, problem=f"{reply.failure.kind}: {reply.failure.detail}")
    try:
        return Answer(parse(reply.text), reply.text)
    except ReplyError as error:
        cut = " (the reply was cut off by the token limit)" if reply.finish_reason == "length" else ""
        return Answer(None, reply.text, f"{error}{cut}")


def _asked_again(request: LLMRequest, reply: LLMReply, problem: str, language: Language | None) -> LLMRequest:
    language = language or language_of("".join(m.content for m in request.messages))
    more = (Message("assistant", reply.text), Message("user", language.ask_again.format(problem=problem)))
    return dataclasses.replace(request, messages=request.messages + more)
