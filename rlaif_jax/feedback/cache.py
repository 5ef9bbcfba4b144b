"""Replies that are kept: a sqlite file in front of any model, and transcripts that stand in for one."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlaif_jax.errors import UserError
from rlaif_jax.feedback.llm import LLM, Failure, LLMReply, LLMRequest, OnReply, reply_from_json, reply_to_json, request_to_json

_TABLES = """
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, model TEXT, request TEXT, reply TEXT);
CREATE TABLE IF NOT EXISTS choices (key TEXT PRIMARY KEY, logprobs TEXT);
"""


class CachedLLM:
    """A model whose successful replies are kept in a sqlite file; each is committed as it comes.

    What was answered once is never asked again, also after `kill -9`. Failures are not kept. Messages are stored as
    they are (they hold no key: keys come from the environment and go into the HTTP header only).
    """

    def __init__(self, inner: LLM, path: str | Path):
        self.name, self.inner, self._path = inner.name, inner, Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(self._path, check_same_thread=False, timeout=60)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self._path} is not a reply cache ({error}); move it away or name another file") from error
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    def complete(self, requests: Sequence[LLMRequest], on_reply: OnReply | None = None) -> list[LLMReply]:
        """See `LLM.complete`; equal requests of one batch are asked once."""
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

    def choice_logprobs(self, requests: Sequence[LLMRequest], choices: Sequence[str]) -> np.ndarray:
        """See `LLM.choice_logprobs`."""
        keys = ["|".join((r.key(self.name), *choices)) for r in requests]
        out = np.full((len(keys), len(choices)), np.nan, np.float32)
        with self._lock:
            for i, key in enumerate(keys):
                row = self._db.execute("SELECT logprobs FROM choices WHERE key = ?", (key,)).fetchone()
                if row:
                    out[i] = json.loads(row[0])
        todo = [i for i in range(len(keys)) if np.isnan(out[i]).any()]
        self.hits += len(keys) - len(todo)
        self.misses += len(todo)
        if todo:
            out[todo] = self.inner.choice_logprobs([requests[i] for i in todo], choices)
            rows = [(keys[i], json.dumps(out[i].tolist())) for i in todo if not np.isnan(out[i]).any()]
            with self._lock, self._db:
                self._db.executemany("INSERT OR REPLACE INTO choices VALUES (?, ?)", rows)
        return out

    def export(self, path: str | Path) -> int:
        """Writes everything as a transcript (JSON lines) for `RecordedLLM`; returns the number of replies."""
        with self._lock:
            rows = self._db.execute("SELECT key, model, request, reply FROM replies ORDER BY key").fetchall()
        lines = (
            json.dumps({"key": k, "model": m, "request": json.loads(q), "reply": json.loads(r)}, ensure_ascii=False) + "\n"
            for k, m, q, r in rows
        )
        Path(path).write_text("".join(lines), encoding="utf-8")
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
    """Answers from a transcript (see `CachedLLM.export`); what it does not hold is a failure "not_recorded"."""

    def __init__(self, path: str | Path, name: str = ""):
        path = Path(path)
        if not path.exists():
            raise UserError(f"the transcript {path} does not exist")
        self._replies: dict[str, LLMReply] = {}
        models = set()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                self._replies[row["key"]] = reply_from_json(row["reply"])
                models.add(row["model"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}:{number}: not a row of a transcript ({error!r})") from error
        if not name and len(models) != 1:
            raise UserError(f"{path} holds replies of {sorted(models) or 'no model'}; name the one to replay")
        self.name = name or models.pop()

    def complete(self, requests: Sequence[LLMRequest], on_reply: OnReply | None = None) -> list[LLMReply]:
        """See `LLM.complete`."""
        missing = LLMReply(failure=Failure("not_recorded", "the transcript holds no reply to this request"))
        replies = [self._replies.get(r.key(self.name), missing) for r in requests]
        for i, reply in enumerate(replies):
            if on_reply:
                on_reply(i, reply)
        return replies

    def choice_logprobs(self, requests: Sequence[LLMRequest], choices: Sequence[str]) -> np.ndarray:
        """A transcript holds texts only."""
        raise UserError("a transcript holds no token probabilities; use the judge mode binary or k_vote")
