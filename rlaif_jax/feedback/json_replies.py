"""Replies that must be JSON: parsed leniently where only one reading is possible, else asked for again, else invalid."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from rlaif_jax.feedback.llm import LLM, Failure, LLMReply, LLMRequest, Message, clean
from rlaif_jax.feedback.thinking import PROBLEMS, said, without_thinking
from rlaif_jax.language import Language, language_of

# field -> its type, or its allowed values
Schema = Mapping[str, type | tuple]

_MOST_CHARACTERS, _MOST_DEPTH, _MOST_DIGITS = 100_000, 20, 18
_MOST_TRIES = 100  # braces that begin no object, and commas too many: bounds the time, since each try may read the rest
_MOST_SHOWN = 60  # characters of a value in an error, which the model is sent
_MOST_REPEATED = 2000  # characters of an unreadable reply that are sent back
_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,9}")  # digits of any script, but no "②", which is a digit only in name
# East Asian letters, digits and marks with an ASCII form: those of full width, the full stop and the corner brackets.
_ASCII_FORMS = {0xFEE0 + code: code for code in range(0x21, 0x7F)} | {0x3002: "."} | dict.fromkeys(range(0x300C, 0x3010), '"')
class ReplyError(ValueError):
    """A reply that cannot be parsed. The message is sent to the model when it is asked again."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A parsed reply (`value`), or why there is none (`failure`; `problem` as text). `text` is the model's last reply.

    The kind of a failure is that of a reply that did not come, or "thinking", "empty", "cut" or "unreadable".
    """

    value: dict[str, Any] | None
    text: str = ""
    problem: str = ""
    failure: Failure | None = None


def plain(text: str) -> str:
    """The text with East Asian letters, digits and marks in their ASCII forms; its length stays the same."""
    return text.translate(_ASCII_FORMS)


def answer_in(text: str) -> str:
    """The reply without its thinking. ReplyError if nothing is left, or if it is too long to be an answer."""
    if len(text) > _MOST_CHARACTERS:
        raise ReplyError(f"it has {len(text):,} characters; at most {_MOST_CHARACTERS:,} are read")
    found = without_thinking(text)
    if found.cause:
        raise ReplyError(PROBLEMS[found.cause])
    return found.text


def parse_json(text: str, schema: Schema) -> dict[str, Any]:
    """The fields of `schema` from the one JSON object in `text`.

    Prose, a code fence or thinking around it, and trailing commas are allowed. Several different objects, a repeated or missing
    field, or a value outside the schema raise ReplyError: guessing would invent a verdict.
    """
    # A mark of thinking inside a text of the object is data, so a reply that is one object is read as it is.
    read = _only_object(text) if len(text) <= _MOST_CHARACTERS else None
    objects = [read] if read is not None else _objects(answer_in(text))
    found = [o for o in objects if any(name in o for name in schema)]
    if not found:
        raise ReplyError(f"no JSON object with the fields {', '.join(schema)} was found")
    if any(o != found[0] for o in found[1:]):
        raise ReplyError("several different JSON objects were found; exactly one is expected")
    return {name: _checked(name, found[0].get(name), kind) for name, kind in schema.items()}


def _only_object(text: str) -> dict[str, Any] | None:
    """The object of a text that is a JSON object and nothing else."""
    text = text.strip()
    if not text.startswith("{"):
        return None
    try:
        value, end = _DECODER.raw_decode(text)
    except (json.JSONDecodeError, RecursionError):
        return None
    return _shallow(value) if end == len(text) else None


def _objects(text: str) -> list[dict[str, Any]]:
    """The outermost JSON objects in a text. ReplyError for one that is too deep, or holds a number that is too long."""
    found, at, tries = [], text.find("{"), 0
    while at >= 0:
        try:
            value, end = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            tries += 1
            if tries > _MOST_TRIES:
                raise ReplyError("too many braces in it begin no JSON object") from error
            comma = _trailing_comma(text, error.pos)
            text, end = (f"{text[:comma]} {text[comma + 1 :]}", at) if comma > at else (text, at + 1)
        except RecursionError:
            _too_deep()
        else:
            found.append(_shallow(value))
        at = text.find("{", end)
    return found


def _trailing_comma(text: str, at: int) -> int:
    """The place of the comma that stopped the decoder at `at`, in front of a closing bracket; -1 if something else stopped it."""
    comma = at if text[at : at + 1] == "," else len(text[:at].rstrip()) - 1
    after = text[comma + 1 :].lstrip()[:1] if comma >= 0 else ""
    return comma if after and after in "}]" and text[comma] == "," else -1


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        raise ReplyError("a JSON object has a field twice")
    return out


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ReplyError(f"a number has {len(digits)} digits; at most {_MOST_DIGITS} are read")
    return int(digits)


def _number(digits: str) -> int | float:
    return int(digits[:-2]) if re.fullmatch(r"-?\d{1,9}\.0", digits) else float(digits)


def _no_number(name: str) -> NoReturn:
    raise ReplyError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(
    strict=False, object_pairs_hook=_pairs, parse_int=_whole_number, parse_float=_number, parse_constant=_no_number
)


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    level: list[Any] = [value]
    for _ in range(_MOST_DEPTH):
        level = [v for node in level for v in (node.values() if isinstance(node, dict) else node) if isinstance(v, dict | list)]
        if not level:
            return value
    _too_deep()


def _too_deep() -> NoReturn:
    raise ReplyError(f"its JSON is nested more than {_MOST_DEPTH} levels deep")


def _checked(name: str, value: Any, kind: type | tuple) -> Any:
    if isinstance(kind, tuple):
        wanted = plain(value).strip().lower() if isinstance(value, str) else value  # accept "1" for 1, and "good" for "Good"
        if not isinstance(value, bool | float):
            for allowed in kind:
                if wanted == allowed or (isinstance(value, str) and wanted == str(allowed).lower()):
                    return allowed
        raise ReplyError(f"field {name}: expected one of {', '.join(map(str, kind))}, found {_shown(value)}")
    if kind is list and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return [clean(v) for v in value]
    if kind is str and isinstance(value, str):
        return clean(value.strip())
    if kind is int and isinstance(value, int | str) and not isinstance(value, bool) and _WHOLE_NUMBER.fullmatch(str(value).strip()):
        return int(value)
    expected = {list: "a list of texts", int: "a whole number"}.get(kind, "a text")
    raise ReplyError(f"field {name}: expected {expected}, found {_shown(value)}")


def _shown(value: Any) -> str:
    text = clean(repr(value))
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


Parse = Callable[[str], dict[str, Any]]


def ask(
    llm: LLM, requests: Sequence[LLMRequest], parse: Parse, attempts: int = 3, *, language: Language | None = None
) -> list[Answer]:
    """Sends requests and parses the replies. If parsing fails, asks again and states the error, up to `attempts` times in all.

    `parse(text)` raises ReplyError. A failed request, or a reply that cannot be used at the last attempt, gives an answer without
    a value. `language`: of the sentence that asks again; None: that of the request.
    """
    answers: list[Answer | None] = [None] * len(requests)
    todo = dict(enumerate(requests))
    for attempt in range(1, attempts + 1):
        replies = llm.complete(list(todo.values()))
        again = {}
        for i, reply in zip(todo, replies, strict=True):
            answers[i] = answer = _read(reply, parse)
            if answer.value is None and reply.failure is None and attempt < attempts:
                again[i] = _asked_again(requests[i], answer, attempt, language)
        todo = again
        if not todo:
            break
    return answers


def _read(reply: LLMReply, parse: Parse) -> Answer:
    if reply.failure is not None:
        return Answer(None, problem=str(reply.failure), failure=reply.failure)
    heard = said(reply)
    cut = reply.finish_reason == "length"
    try:
        value = parse(reply.text)
        if not cut or not _amid_prose(heard.text):
            return Answer(value, reply.text)
        problem = PROBLEMS["cut"]
    except ReplyError as error:
        problem = f"{error} ({PROBLEMS['cut']})" if cut else str(error)
    return Answer(None, reply.text, problem, Failure(heard.cause or "unreadable", problem))


def _amid_prose(text: str) -> bool:
    """Whether a text has a JSON object with other text on both sides. In a reply that was cut off, that may be a draft."""
    return bool(_objects(text)) and text[0] not in "{`" and text[-1] not in "}`"


def _asked_again(request: LLMRequest, answer: Answer, attempt: int, language: Language | None) -> LLMRequest:
    """The request after a reply that could not be used: with that reply and the problem, or with the problem alone and another
    seed, if the reply has no answer that could be corrected."""
    language = language or language_of("".join(m.content for m in request.messages))
    sentence = language.ask_again.format(problem=answer.problem)
    shown = without_thinking(answer.text).text[:_MOST_REPEATED]
    if shown:
        more = (Message("assistant", shown), Message("user", sentence))
        return dataclasses.replace(request, messages=request.messages + more)
    *first, last = request.messages
    last = dataclasses.replace(last, content=f"{last.content}\n\n{sentence}")
    return dataclasses.replace(request, messages=(*first, last), seed=request.seed + attempt)
