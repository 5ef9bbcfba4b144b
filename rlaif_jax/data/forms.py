"""The forms that rows of data have: from a row of a file to the fields of a record.

`auto` knows a form by its columns:

    prompt (or query), response (or completion), chosen, rejected ...   plain; chosen and rejected may be lists of chat turns
    messages or conversations, or a prompt that is a list of turns      chat: {"role", "content"} or {"from", "value"}
    instruction, input, output, history                                 alpaca

A form that a kind of record cannot hold without loss is a RecordError: no turn is left out silently.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlaif_jax.data.records import PreferencePair, RecordError

Row = Mapping[str, Any]
Turn = tuple[str, str]  # (role, text)
_ROLES = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant", "system": "system",
    "developer": "system",
}  # fmt: skip
_CHATS = ("messages", "conversations", "prompt")
_OTHER_NAMES = {"prompt": "query", "response": "completion"}
_ABSENT = object()


def fields_of(kind: type, row: Row, format: str = "auto", columns: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The fields of a record of class `kind`, and the row's other columns. `columns` has priority over the form."""
    chosen = {field: _column(row, field, column) for field, column in (columns or {}).items()}
    _check_turns(row, columns or {})
    given = {**row, **chosen}
    for field in [field for field, value in chosen.items() if value is _ABSENT]:
        del given[field]
    found = dict(FORMS[format](kind, given) if format != "auto" else _auto(kind, given))
    kept = {f: v for f, v in chosen.items() if v is not _ABSENT and not (f in found and isinstance(v, (list, Mapping)))}
    return found | kept


def _auto(kind: type, row: Row) -> Row:
    if isinstance(row.get("prompt"), list):
        return _chat(kind, row, ("prompt",))
    if row.get("prompt") is None and row.get("query") is None:
        if any(isinstance(row.get(column), list) for column in _CHATS) or _bare_pair(kind, row):
            return _chat(kind, row)
        if row.get("instruction") is not None:
            return _alpaca(kind, row)
    return _plain(kind, row)


def _plain(kind: type, row: Row) -> Row:
    """Columns named like the fields; a prompt may be called query, and a response completion."""
    found = dict(row)
    names = {f.name for f in dataclasses.fields(kind)}
    for field, other in _OTHER_NAMES.items():
        if field in names and found.get(field) is None and found.get(other) is not None:
            found[field] = found.pop(other)
    if isinstance(found.get("response"), (list, Mapping)) and "response" in names:
        found["response"] = _answer(found["response"], "response", [("user", found.get("prompt"))])
    return found | _sides(kind, row, [("user", found.get("prompt"))] if isinstance(found.get("prompt"), str) else None)


def _alpaca(kind: type, row: Row) -> Row:
    """Alpaca: instruction, optional input, output, history of [request, answer]; for pairs chosen and rejected."""
    parts = [p for p in (row.get("instruction"), row.get("input")) if p]
    prompt = "\n".join(parts) if all(isinstance(p, str) for p in parts) else parts
    found = {k: v for k, v in row.items() if k not in ("instruction", "input", "output", "history", "response", "prompt")}
    found |= {"prompt": prompt or None, "response": row.get("output")}
    if row.get("history"):
        found["history"] = row["history"]
    return _held(kind, found | _sides(kind, row, None), "history")


def _chat(kind: type, row: Row, columns: Sequence[str] = _CHATS) -> Row:
    """A chat as a list of turns: the last answer is learned, given what comes before it."""
    column = next((c for c in columns if row.get(c) is not None), None)
    turns = _turns(row[column], column) if column else []
    if not column and not _bare_pair(kind, row):
        raise RecordError(f"column {columns[0]!r}: expected a list of chat turns, found no value (the row has {_names(row)})")
    names = {f.name for f in dataclasses.fields(kind)}
    found = {k: v for k, v in row.items() if k not in (column, "history")}
    if kind is PreferencePair:
        found |= _sides(kind, row, turns if column else None)
        turns = turns or _common(row)
    elif turns and turns[-1][0] == "assistant":
        found["response"], turns = turns[-1][1], turns[:-1]
    elif "response" in names:
        answer = row.get("response") if row.get("response") is not None else row.get("completion")
        if answer is None:
            raise RecordError(f"column {column!r}: expected an assistant turn at the end, found {_roles(turns)}")
        found["response"] = _answer(answer, "response", turns)
    return _held(kind, found | _context(turns, column or "chosen", row.get("system")), column or "chosen")


def _context(turns: Sequence[Turn], column: str, system: Any) -> dict[str, Any]:
    """System text, earlier turns and request of a chat that ends with the request."""
    found: dict[str, Any] = {"system": system}
    rest = list(turns)
    if rest and rest[0][0] == "system":
        text = rest.pop(0)[1]
        if system and system != text:
            raise RecordError(f"column {column!r}: it has a system turn, and the field 'system' another text; keep one of them")
        found["system"] = text
    roles = [role for role, _ in rest]
    if not rest or roles != ["user", "assistant"] * (len(rest) // 2) + ["user"]:
        expected = "an optional system turn, then user and assistant in turn"
        raise RecordError(f"column {column!r}: expected {expected}, found {_roles(turns)} before the answer")
    found["prompt"] = rest[-1][1]
    if len(rest) > 1:
        found["history"] = [[rest[i][1], rest[i + 1][1]] for i in range(0, len(rest) - 1, 2)]
    return found


def _sides(kind: type, row: Row, before: Sequence[Turn] | None) -> dict[str, str]:
    """Chosen and rejected as texts, where the row has them as turns. `before`: the turns that an answer follows, where known."""
    found: dict[str, str] = {}
    for side in ("chosen", "rejected") if kind is PreferencePair else ():
        if isinstance(row.get(side), (list, Mapping)):
            found[side] = _answer(row[side], side, before)
    return found


def _bare_pair(kind: type, row: Row) -> bool:
    """Whether it is a pair of chats that begin with the same turns, without a prompt of their own."""
    return kind is PreferencePair and all(isinstance(row.get(side), list) and len(row[side]) > 1 for side in ("chosen", "rejected"))


def _common(row: Row) -> list[Turn]:
    before = [_turns(row[side], side)[:-1] for side in ("chosen", "rejected")]
    if before[0] != before[1]:
        raise RecordError("fields 'chosen' and 'rejected': expected the same turns before the last answer, found different ones")
    return before[0]


def _answer(value: Any, column: str, before: Sequence[Turn] | None) -> str:
    """The answer in a text, a turn, or a list of turns: the answer alone, or `before` and the answer."""
    if isinstance(value, str):
        return value
    turns = _turns(value if isinstance(value, list) else [value], column)
    if turns[-1][0] != "assistant":
        raise RecordError(f"field {column!r}: expected an assistant turn at the end, found {_roles(turns)}")
    known = [*(before or ())]
    without_system = known[1:] if known[:1] and known[0][0] == "system" else known
    if turns[:-1] and before is not None and turns[:-1] not in (known, without_system):
        expected = "the answer alone, or the turns of the prompt and the answer"
        raise RecordError(f"field {column!r}: expected {expected}, found {_roles(turns)}")
    return turns[-1][1]


def _turns(value: Any, column: str) -> list[Turn]:
    if not isinstance(value, list) or not value:
        found = "none" if value == [] else type(value).__name__
        raise RecordError(f"column {column!r}: expected a list of chat turns, found {found}")
    return [_turn(turn, f"column {column!r}, turn {number}") for number, turn in enumerate(value, 1)]


def _turn(turn: Any, where: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise RecordError(f"{where}: expected an object with role and content, found {type(turn).__name__}")
    name, text = ("role", "content") if turn.get("role") is not None else ("from", "value")
    role = _ROLES.get(turn.get(name)) if isinstance(turn.get(name), str) else None
    if role is None:
        found = repr(turn.get(name)) if turn.get(name) is not None else f"no value (the turn has {_names(turn)})"
        raise RecordError(f"{where}: expected a role of user, assistant or system (or human, gpt), found {found}")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise RecordError(f"{where}: it calls tools, which are not supported")
    return role, _text(turn.get(text), f"{where}: {text}")


def _text(value: Any, where: str) -> str:
    """A turn's text; a list of text parts is joined."""
    if isinstance(value, list) and value and all(_is_text_part(part) for part in value):
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str) or not value.strip():
        raise RecordError(f"{where}: expected text, found {'no value' if value is None else _short(value)}")
    return value


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") == "text"


def _held(kind: type, found: dict[str, Any], column: str) -> dict[str, Any]:
    """The fields, if a record of this kind can hold them."""
    if found.get("history") and "history" not in {f.name for f in dataclasses.fields(kind)}:
        turns = len(found["history"]) * 2 + 1 if isinstance(found["history"], list) else "several"
        raise RecordError(f"column {column!r}: expected one request, found a chat of {turns} turns, and a prompt holds only one")
    return found


def _column(row: Row, field: str, column: str) -> Any:
    """The value of a column of `columns`; `_ABSENT` for an empty name, which says that no column is meant."""
    if not column:
        return _ABSENT
    value = _dig(row, column)
    if value is _ABSENT:
        raise RecordError(f"column {column!r} for field {field!r}: not found (the row has {_names(row)})")
    return value


def _dig(row: Any, dotted: str) -> Any:
    """The value at "a.b.0", or `_ABSENT`. A column with this very name, dots included, has priority."""
    if isinstance(row, Mapping) and dotted in row:
        return row[dotted]
    for part in dotted.split("."):
        if isinstance(row, Mapping) and part in row:
            row = row[part]
        elif isinstance(row, list) and part.isascii() and part.isdigit() and int(part) < len(row):
            row = row[int(part)]
        else:
            return _ABSENT
    return row


_SPEAKERS = {"prompt": "user", "response": "assistant", "chosen": "assistant", "rejected": "assistant", "system": "system"}


def _check_turns(row: Row, columns: Mapping[str, str]) -> None:
    """RecordError where columns such as "messages.0.content" pick turns of a chat, but not all of them, or in other roles."""
    used: dict[str, set[int]] = {}
    for field, column in columns.items():
        parts = column.split(".")
        chats = [i for i in range(1, len(parts)) if parts[i].isdigit()]
        for i in chats if column not in row else ():
            turns = _dig(row, ".".join(parts[:i]))
            if not isinstance(turns, list) or not all(isinstance(t, Mapping) and ("role" in t or "from" in t) for t in turns):
                continue
            role = _ROLES.get(str(turns[int(parts[i])].get("role", turns[int(parts[i])].get("from"))))
            if field in _SPEAKERS and role != _SPEAKERS[field]:
                expected = f"expected a {_SPEAKERS[field]} turn, found {role}"
                raise RecordError(f"column {column!r} for field {field!r}: {expected}; {_HINT}")
            used.setdefault(".".join(parts[:i]), set()).add(int(parts[i]))
    for name, numbers in used.items():
        if len(numbers) < len(_dig(row, name)):
            raise RecordError(f"column {name!r}: it has {len(_dig(row, name))} turns, and `columns` uses {len(numbers)}; {_HINT}")


_HINT = "a chat is read with all of its turns by format='chat', without `columns`"


def _roles(turns: Sequence[Turn]) -> str:
    return f"[{', '.join(role for role, _ in turns)}]" if turns else "no turn"


def _names(row: Mapping) -> str:
    return ", ".join(repr(k) for k in row) or "nothing"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _sharegpt_pairs(kind: type, row: Row) -> Row:
    """LLaMA-Factory's preference rows: conversations, chosen, rejected."""
    return _chat(kind, row, ("conversations",))


def _verl(kind: type, row: Row) -> Row:
    """verl's rows: `prompt` is a list of chat messages."""
    return _chat(kind, row, ("prompt",))


def _labelled(kind: type, row: Row) -> Row:
    """Labelled responses with the columns query, response, label."""
    return {**{k: v for k, v in row.items() if k != "query"}, "prompt": row.get("query")}


FORMS: Mapping[str, Callable[[type, Row], Row]] = {
    "chat": _chat, "alpaca": _alpaca, "sharegpt_pairs": _sharegpt_pairs, "verl": _verl, "labelled": _labelled,
}  # fmt: skip
