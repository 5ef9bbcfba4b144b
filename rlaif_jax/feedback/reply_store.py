"""The sqlite file of stored replies: a checksum per row, and claims, so that of several processes one asks and the others wait."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlaif_jax.errors import UserError

_TABLES = """
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, model TEXT, request TEXT, reply TEXT, checksum TEXT);
CREATE TABLE IF NOT EXISTS choices (key TEXT PRIMARY KEY, model TEXT, logprobs TEXT, checksum TEXT);
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT, host TEXT, pid INTEGER, expires REAL);
"""
VALUES = {"replies": ("model", "request", "reply"), "choices": ("model", "logprobs")}  # table -> its columns beside the key
_FORMAT = 2  # of the file, in sqlite's user_version; 1 has no checksums
_HELD = 60.0  # seconds for which a claim holds; its owner renews it while it waits for the reply
_LOCKED = 60.0  # seconds to wait while another process writes
_logger = logging.getLogger(__name__)


class ReplyStore:
    """Values by key in the tables of `VALUES`; the last value is JSON. Each is committed when `put` returns."""

    def __init__(self, path: str | Path):
        self.path, self._lock = Path(path), threading.Lock()
        self._owner = uuid.uuid4().hex
        with self._named_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))  # sqlite gives its other files the same mode
            self._db = sqlite3.connect(self.path, check_same_thread=False, timeout=_LOCKED)
            self._db.execute("PRAGMA journal_mode=WAL")
            if self._version() != _FORMAT:
                with self._db:
                    self._db.execute("BEGIN IMMEDIATE")
                    self._upgrade()

    def _version(self) -> int:
        return self._db.execute("PRAGMA user_version").fetchone()[0]

    def _upgrade(self) -> None:
        """Makes the tables, or gives the rows of an older file their checksums."""
        version = self._version()
        names = {row[0] for row in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        old = [table for table in VALUES if table in names and version < _FORMAT]
        for table in old:
            self._db.execute(f"ALTER TABLE {table} ADD COLUMN checksum TEXT")
        for statement in _TABLES.split(";"):
            self._db.execute(statement)
        for table in old:
            for row in self._db.execute(f"SELECT key, {', '.join(VALUES[table])} FROM {table}").fetchall():
                self._db.execute(f"UPDATE {table} SET checksum = ? WHERE key = ?", (checksum(row), row[0]))
        if version < _FORMAT:
            self._db.execute(f"PRAGMA user_version = {_FORMAT}")

    def find(self, table: str, keys: Collection[str]) -> dict[str, Any]:
        """The stored values of these keys. A damaged row counts as missing, and a warning names the file."""
        found, damaged = {}, 0
        with self._locked() as db:
            for key in keys:
                row = db.execute(f"SELECT key, {', '.join(VALUES[table])}, checksum FROM {table} WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    value = _value(row)
                    damaged += value is None
                    found |= {} if value is None else {key: value}
        if damaged:
            _logger.warning("%s: %d stored replies are damaged (wrong checksum); they are asked for again", self.path, damaged)
        return found

    def put(self, table: str, key: str, *values: str) -> None:
        """Stores a row."""
        row = (key, *values)
        with self._locked() as db, db:
            db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * (len(row) + 1))})", (*row, checksum(row)))

    def rows(self, table: str) -> list[tuple[str, ...]]:
        """All rows in order of their keys: key and values. UserError if one is damaged."""
        with self._locked() as db:
            rows = db.execute(f"SELECT key, {', '.join(VALUES[table])}, checksum FROM {table} ORDER BY key").fetchall()
        if bad := [row[0] for row in rows if _value(row) is None]:
            raise UserError(f"{self.path}: {len(bad)} stored replies are damaged (wrong checksum); run the stage again to ask anew")
        return [row[:-1] for row in rows]

    def claim(self, keys: Sequence[str]) -> list[str]:
        """Those of the keys that this process now has to ask for. The others are being asked for by another process."""
        now, host, mine = time.time(), socket.gethostname(), []
        with self._locked() as db, db:
            db.execute("BEGIN IMMEDIATE")
            for key in keys:
                held = db.execute("SELECT owner, host, pid, expires FROM claims WHERE key = ?", (key,)).fetchone()
                if held is None or held[0] == self._owner or held[3] < now or (held[1] == host and not _runs(held[2])):
                    values = (key, self._owner, host, os.getpid(), now + _HELD)
                    db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?)", values)
                    mine.append(key)
        return mine

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Renews this process's claims while its requests are answered, and gives them up at the end."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(_HELD / 4):
                with contextlib.suppress(UserError), self._locked() as db, db:
                    db.execute("UPDATE claims SET expires = ? WHERE owner = ?", (time.time() + _HELD, self._owner))

        thread = threading.Thread(target=renew, daemon=True, name="claims")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            with self._locked() as db, db:
                db.execute("DELETE FROM claims WHERE owner = ?", (self._owner,))

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._named_errors():
            yield self._db

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """sqlite's errors as UserErrors that name the file, and never ask to move away what was paid without need."""
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path} cannot be opened: {error.strerror}") from error
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:  # the others from the names in a damaged file
            text = str(error)
            if "locked" in text or "busy" in text:
                raise UserError(
                    f"{self.path} has been locked by another process for {_LOCKED:.0f} s. The stored replies are intact: let the "
                    "other command finish, or end it, and start this one again"
                ) from error
            if "full" in text:
                raise UserError(f"{self.path}: the disk is full. Free some space, then start the same command again") from error
            if "readonly" in text or "unable to open" in text or "disk I/O" in text:
                raise UserError(f"{self.path} cannot be written ({text}); check the permissions and the disk") from error
            raise UserError(f"{self.path} is not a file of stored replies, or is damaged ({text}); move it away") from error


def checksum(row: Sequence[str]) -> str:
    """The checksum of a row's values."""
    return hashlib.sha256("\0".join(map(str, row)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _value(row: Sequence[Any]) -> Any:
    """The JSON value of a row that ends with its checksum; None for a damaged row."""
    if checksum(row[:-1]) != row[-1]:
        return None
    try:
        return json.loads(row[-2])
    except (ValueError, TypeError, RecursionError):
        return None


def _runs(pid: Any) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, TypeError, OverflowError):
        return True
    return True
