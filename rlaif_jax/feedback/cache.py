"""Stored replies: a sqlite cache in front of any model, and transcripts that replace a model."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlaif_jax.errors import UserError
from rlaif_jax.feedback.llm import (
    LLM,
    Failure,
    LLMReply,
    LLMRequest,
    OnReply,
    OnRow,
    clean,
    logprobs_from_json,
    reply_from_json,
    reply_to_json,
    request_to_json,
    row_failures,
)
from rlaif_jax.feedback.reply_store import ReplyStore, checksum
from rlaif_jax.feedback.spending import Ledger, Spending

_LEAST = -1e6  # stands for the log-probability of what is impossible, which JSON cannot hold
_POLL = 0.2  # seconds between two looks for a reply that another process waits for


class CachedLLM:
    """Stores the successful replies of a model in a sqlite file. Each reply is committed as it arrives.

    A request that was answered is never sent again, even after `kill -9`. Failures are not stored. Several processes may share the
    file: each request is sent by one of them, and the others wait for its reply. Messages are stored unchanged. They contain no API
    key: keys are read from the environment and go into the HTTP header only.

    `ledger` counts the replies that come from the file; for a model without an `account` also those that do not.
    """

    def __init__(self, inner: LLM, path: str | Path, ledger: Ledger | None = None):
        self.name, self.inner, self._store, self._ledger = inner.name, inner, ReplyStore(path), ledger or Ledger()
        self.hits = self.misses = 0
        self.failures: Mapping[int, Failure] = {}

    def complete(self, requests: Sequence[LLMRequest], on_reply: OnReply | None = None) -> list[LLMReply]:
        """See `LLM.complete`. Equal requests in a batch are sent once."""
        keys = [r.key(self.name) for r in requests]
        places = _places(keys)
        known: dict[str, LLMReply] = {}

        def report(key: str, reply: LLMReply) -> None:
            known[key] = reply
            for i in places[key] if on_reply else ():
                on_reply(i, reply)

        def ask(mine: list[str]) -> None:
            def arrived(number: int, reply: LLMReply) -> None:
                reply = dataclasses.replace(reply, text=clean(reply.text))
                if reply.failure is None:
                    values = request_to_json(requests[places[mine[number]][0]]), reply_to_json(reply)
                    self._store.put("replies", mine[number], self.name, *map(_json, values))
                    self._count(reply.prompt_tokens, reply.completion_tokens)
                report(mine[number], reply)

            self.inner.complete([requests[places[key][0]] for key in mine], arrived)

        def stored(keys: Sequence[str]) -> None:
            for key, values in self._store.find("replies", keys).items():
                report(key, reply_from_json(values))

        self._answer(list(places), known, stored, ask)
        self.hits += sum(len(places[key]) - 1 for key in places)
        return [known[key] for key in keys]

    def choice_logprobs(
        self, requests: Sequence[LLMRequest], choices: Sequence[str], on_row: OnRow | None = None
    ) -> np.ndarray:
        """See `LLM.choice_logprobs`."""
        keys = [r.choice_key(self.name, choices) for r in requests]
        places = _places(keys)
        known: dict[str, Sequence[float]] = {}
        failed: dict[str, Failure] = {}

        def ask(mine: list[str]) -> None:
            def arrived(number: int, row: Sequence[float]) -> None:
                known[mine[number]] = row
                if not np.isnan(row).any():
                    values = [max(float(v), _LEAST) for v in row]
                    if max(values) > 1e-4:
                        raise UserError(f"the model {self.name} gave the log-probability {max(values):g}; expected at most 0")
                    self._store.put("choices", mine[number], self.name, _json(values))
                    self._count(0, 0)

            rows = self.inner.choice_logprobs([requests[places[key][0]] for key in mine], choices, arrived)
            known.update(zip(mine, rows.tolist(), strict=True))
            causes = zip(mine, row_failures(self.inner, rows), strict=True)
            failed.update((key, cause) for key, cause in causes if cause is not None)

        def stored(keys: Sequence[str]) -> None:
            known.update((key, logprobs_from_json(row)) for key, row in self._store.find("choices", keys).items())

        self._answer(list(places), known, stored, ask)
        self.hits += sum(len(places[key]) - 1 for key in places)
        self.failures = {i: failed[key] for i, key in enumerate(keys) if key in failed}
        for i, key in enumerate(keys):
            if on_row:
                on_row(i, known[key])
        return np.array([known[key] for key in keys], np.float32).reshape(len(keys), len(choices))

    def _answer(
        self, keys: list[str], known: Mapping[str, Any], stored: Callable[[list[str]], None], ask: Callable[[list[str]], None]
    ) -> None:
        """Fills `known` for these keys: from the file, by asking, or by waiting for another process that asks."""
        stored(keys)
        asked = 0
        while todo := [key for key in keys if key not in known]:
            with self._store.held():
                mine = self._store.claim(todo)
                stored(mine)  # the process that had the claim before may have answered meanwhile
                if mine := [key for key in mine if key not in known]:
                    asked += len(mine)
                    ask(mine)
            if len(known) < len(keys) and not mine:
                time.sleep(_POLL)
                stored([key for key in keys if key not in known])
        self.hits, self.misses = self.hits + len(keys) - asked, self.misses + asked
        if len(keys) > asked:
            self._ledger.add(Spending(cached=len(keys) - asked))

    def _count(self, prompt_tokens: int, completion_tokens: int) -> None:
        if getattr(self.inner, "account", None) is None:
            self._ledger.add(Spending(1, 0, prompt_tokens, completion_tokens))

    def export(self, path: str | Path) -> int:
        """Writes the cache as a transcript (JSON lines) for `RecordedLLM`. Returns the number of replies."""
        rows: list[dict[str, Any]] = [
            {"key": k, "model": m, "request": json.loads(q), "reply": json.loads(r)} for k, m, q, r in self._store.rows("replies")
        ]
        rows += [{"key": k, "model": m, "logprobs": json.loads(v)} for k, m, v in self._store.rows("choices")]
        rows = [row | {"checksum": checksum([json.dumps(row, sort_keys=True)])} for row in rows]
        Path(path).write_text("".join(_json(r) + "\n" for r in rows), encoding="utf-8")
        return len(rows)

    def close(self) -> None:
        """Closes the file."""
        self._store.close()


def _places(keys: Sequence[str]) -> dict[str, list[int]]:
    """key -> its indexes."""
    places: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        places.setdefault(key, []).append(i)
    return places


def _json(value: Any) -> str:
    return clean(json.dumps(value, ensure_ascii=False))


_MISSING = Failure("not_recorded", "the transcript has no reply to this request")


class RecordedLLM:
    """Answers from a transcript (see `CachedLLM.export`). A request that is not in it gets the failure "not_recorded"."""

    def __init__(self, path: str | Path, name: str = ""):
        path = Path(path)
        if not path.exists():
            raise UserError(f"the transcript {path} does not exist")
        self._replies: dict[str, LLMReply] = {}
        self._choices: dict[str, list[float]] = {}
        self.failures: Mapping[int, Failure] = {}
        models = set()
        for number, line in enumerate(_lines(path), 1):
            try:
                models.add(self._read(json.loads(line)))
            except (ValueError, KeyError, RecursionError) as error:
                raise UserError(f"{path}:{number}: not a line of a transcript ({type(error).__name__}: {error})") from error
        if not name and len(models) != 1:
            raise UserError(f"{path} holds replies of {sorted(models) or 'no model'}; say which model to replay")
        self.name = name or models.pop()

    def _read(self, row: Any) -> str:
        """Takes in one line and returns its model. ValueError or KeyError for one that is no line of a transcript."""
        if not isinstance(row, dict) or not all(isinstance(row[name], str) for name in ("key", "model")):
            raise ValueError("expected an object with key and model")
        if row.pop("checksum", None) not in (None, checksum([json.dumps(row, sort_keys=True)])):
            raise ValueError("the line was altered: its checksum is wrong")
        if "logprobs" in row:
            self._choices[row["key"]] = logprobs_from_json(row["logprobs"])
        else:
            self._replies[row["key"]] = reply_from_json(row["reply"])
        return row["model"]

    def complete(self, requests: Sequence[LLMRequest], on_reply: OnReply | None = None) -> list[LLMReply]:
        """See `LLM.complete`."""
        replies = [self._replies.get(r.key(self.name), LLMReply(failure=_MISSING)) for r in requests]
        for i, reply in enumerate(replies):
            if on_reply:
                on_reply(i, reply)
        return replies

    def choice_logprobs(
        self, requests: Sequence[LLMRequest], choices: Sequence[str], on_row: OnRow | None = None
    ) -> np.ndarray:
        """See `LLM.choice_logprobs`; NaN for a request that is not in the transcript."""
        missing = [np.nan] * len(choices)
        rows = [self._choices.get(r.choice_key(self.name, choices), missing) for r in requests]
        self.failures = {i: _MISSING for i, row in enumerate(rows) if row is missing}
        for i, row in enumerate(rows):
            if on_row:
                on_row(i, row)
        return np.array(rows, np.float32).reshape(len(requests), len(choices))


def _lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file. Only a line feed ends a line: U+2028 and others stand in texts."""
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a transcript: {error}") from error
    return lines[:-1] if not lines[-1] else lines
