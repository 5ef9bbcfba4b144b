"""Stored replies: a sqlite cache in front of any model, and transcripts that replace a model."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

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
    request_to_json,
)

_TABLES = """
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, model TEXT, request TEXT, reply TEXT);
CREATE TABLE IF NOT EXISTS choices (key TEXT PRIMARY KEY, model TEXT, logprobs TEXT);
"""


class CachedLLM:
    """Caches the successful replies of a model in a sqlite file. Each reply is committed as it arrives.

    A request that was answered is never sent again, even after `kill -9`. Failures are not cached. Messages are stored
    unchanged. They contain no API key: keys are read from the environment and go into the HTTP header only.
    """

    def __init__(self, inner: LLM, path: str | Path):
        self.name, self.inner, self._path = inner.name, inner, Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(self._path, check_same_thread=False, timeout=60)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self._path} is not a reply cache ({error}); move it away or choose another file") from error
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    def complete(self, requests: Sequence[LLMRequest], on_reply: OnReply | None = None) -> list[LLMReply]:
        """See `LLM.complete`. Equal requests in a batch are sent once."""
        keys = [r.key(self.name) for r in requests]
        known = self._read(keys)
        places: dict[str, list[int]] = {}
        for i, key in enumerate(keys):
            if key in known:
                if on_reply:
                    on_reply(i, known[key])
            else:
                places.setdefault(key, []).append(i)
        self.hits += len(keys) - sum(len(p) for p in places.values())
        self.misses += len(places)
        asked = list(places)

        def arrived(number: int, reply: LLMReply) -> None:
            key = asked[number]
            if reply.failure is None:
                self._write(key, requests[places[key][0]], reply)
            known[key] = reply
            for i in places[key]:
                if on_reply:
                    on_reply(i, reply)

        if asked:
            self.inner.complete([requests[places[key][0]] for key in asked], arrived)
        return [known[key] for key in keys]

    def choice_logprobs(
        self, requests: Sequence[LLMRequest], choices: Sequence[str], on_row: OnRow | None = None
    ) -> np.ndarray:
        """See `LLM.choice_logprobs`."""
        keys = [r.choice_key(self.name, choices) for r in requests]
        with self._lock:
            found = ((k, self._db.execute("SELECT logprobs FROM choices WHERE key = ?", (k,)).fetchone()) for k in set(keys))
            known = {key: json.loads(row[0]) for key, row in found if row}
        new = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
        self.misses += len(new)
        self.hits += len(keys) - sum(key in new for key in keys)
        asked = list(new)

        def arrived(number: int, row: Sequence[float]) -> None:
            known[asked[number]] = row
            if not np.isnan(row).any():
                with self._lock, self._db:
                    values = (asked[number], self.name, json.dumps([float(v) for v in row]))
                    self._db.execute("INSERT OR REPLACE INTO choices VALUES (?, ?, ?)", values)

        if asked:
            rows = self.inner.choice_logprobs([new[key] for key in asked], choices, arrived)
            known |= dict(zip(asked, rows.tolist(), strict=True))
        for i, key in enumerate(keys):
            if on_row:
                on_row(i, known[key])
        return np.array([known[key] for key in keys], np.float32).reshape(len(keys), len(choices))

    def spending(self) -> dict[str, float]:
        """Replies, tokens and money paid for in this process. Replies from the cache cost nothing."""
        account = getattr(self.inner, "account", None)  # only paid models have one
        paid = {} if account is None else {
            "replies_paid": account.replies, "prompt_tokens": account.prompt_tokens,
            "completion_tokens": account.completion_tokens, "spent": account.spent,
        }  # fmt: skip
        return paid | {"replies_from_cache": self.hits}

    def export(self, path: str | Path) -> int:
        """Writes the cache as a transcript (JSON lines) for `RecordedLLM`. Returns the number of replies."""
        with self._lock:
            replies = self._db.execute("SELECT key, model, request, reply FROM replies ORDER BY key").fetchall()
            choices = self._db.execute("SELECT key, model, logprobs FROM choices ORDER BY key").fetchall()
        rows = [{"key": k, "model": m, "request": json.loads(q), "reply": json.loads(r)} for k, m, q, r in replies]
        rows += [{"key": k, "model": m, "logprobs": json.loads(v)} for k, m, v in choices]
        Path(path).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
        return len(rows)

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def _read(self, keys: Sequence[str]) -> dict[str, LLMReply]:
        found = {}
        with self._lock:
            for key in dict.fromkeys(keys):
                row = self._db.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
                if row:
                    found[key] = reply_from_json(json.loads(row[0]))
        return found

    def _write(self, key: str, request: LLMRequest, reply: LLMReply) -> None:
        row = (key, self.name, *(json.dumps(v, ensure_ascii=False) for v in (request_to_json(request), reply_to_json(reply))))
        with self._lock, self._db:
            self._db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?)", row)


class RecordedLLM:
    """Answers from a transcript (see `CachedLLM.export`). A request that is not in it gets the failure "not_recorded"."""

    def __init__(self, path: str | Path, name: str = ""):
        path = Path(path)
        if not path.exists():
            raise UserError(f"the transcript {path} does not exist")
        self._replies: dict[str, LLMReply] = {}
        self._choices: dict[str, list[float]] = {}
        models = set()
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if not line:
                continue
            try:
                row = json.loads(line)
                if "logprobs" in row:
                    self._choices[row["key"]] = row["logprobs"]
                else:
                    self._replies[row["key"]] = reply_from_json(row["reply"])
                models.add(row["model"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}:{number}: not a line of a transcript ({error!r})") from error
        if not name and len(models) != 1:
            raise UserError(f"{path} holds replies of {sorted(models) or 'no model'}; say which model to replay")
        self.name = name or models.pop()

    def complete(self, requests: Sequence[LLMRequest], on_reply: OnReply | None = None) -> list[LLMReply]:
        """See `LLM.complete`."""
        missing = LLMReply(failure=Failure("not_recorded", "the transcript has no reply to this request"))
        replies = [self._replies.get(r.key(self.name), missing) for r in requests]
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
        for i, row in enumerate(rows):
            if on_row:
                on_row(i, row)
        return np.array(rows, np.float32).reshape(len(requests), len(choices))
