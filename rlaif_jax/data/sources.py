"""Reads records from JSON, JSON lines, CSV, parquet and TFDS, also in the formats of other tools."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlaif_jax.data.records import Record, RecordError, from_row
from rlaif_jax.data.tfds_builder import read_split
from rlaif_jax.errors import UserError

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The records of a file, and a reason for each skipped row ("file:line: reason")."""

    records: list[Record]
    skipped: list[str]

    def summary(self, reasons: int = 3) -> str:
        """Counts and the first few reasons, for a log."""
        text = f"{len(self.records)} records"
        if self.skipped:
            more = "; ..." if len(self.skipped) > reasons else ""
            text += f", {len(self.skipped)} rows skipped: " + "; ".join(self.skipped[:reasons]) + more
        return text


def load(
    kind: type, path: str | Path, *, format: str = "auto", columns: Mapping[str, str] | None = None, prefix: str = "",
    limit: int | None = None, on_error: str = "raise",
) -> Loaded:  # fmt: skip
    """The records of a file (.json, .jsonl, .csv, .parquet), or of "tfds:FOLDER" or "tfds:FOLDER#split".

    `kind` is a record class. `format` is auto (columns are named like the record's fields), sharegpt_pairs, alpaca, verl or
    labelled. `columns` maps fields to columns of the file and overrides the format; "a.0.b" reaches into objects and lists.
    `prefix` is put before every prompt. `limit` is the maximum number of records; None or 0 = all.
    Errors: UserError for a file that cannot be read; RecordError "file:line: ..." for a bad row. With on_error="skip" bad
    rows are skipped, and their reasons returned.
    """
    if format != "auto" and format not in ADAPTERS:
        raise UserError(f"data format {format!r} is unknown; known: auto, {', '.join(ADAPTERS)}")
    if on_error not in ("raise", "skip"):
        raise UserError(f"on_error: expected raise or skip, found {on_error!r}")
    if unknown := set(columns or {}) - {f.name for f in dataclasses.fields(kind)}:
        raise UserError(f"columns: {kind.__name__} has no field {', '.join(sorted(unknown))}")
    records, skipped = [], []
    for where, raw in read_rows(path):
        try:
            records.append(from_row(kind, _fields(raw, where, format, columns or {}, prefix), where))
        except RecordError as error:
            if on_error == "raise":
                raise
            skipped.append(str(error))
        if limit and len(records) >= limit:
            break
    if not records:
        raise UserError(f"{path}: no usable record" + (f"; first problem: {skipped[0]}" if skipped else ""))
    return Loaded(records, skipped)


def _fields(raw: Any, where: str, format: str, columns: Mapping[str, str], prefix: str) -> dict[str, Any]:
    """The record's fields from a raw row."""
    if isinstance(raw, RecordError):  # a line that is not JSON is handled like any bad row
        raise raw
    if not isinstance(raw, Mapping):
        raise RecordError(f"{where}: expected an object with named fields, found {type(raw).__name__}")
    try:
        row = dict(ADAPTERS[format](raw) if format != "auto" else raw)
    except RecordError as error:
        raise RecordError(f"{where}: {error}") from error
    for field, column in columns.items():
        row[field] = _dig(raw, column)
        if row[field] is None:
            has = ", ".join(repr(k) for k in raw)
            raise RecordError(f"{where}: column {column!r} for field {field!r}: not found (the row has {has})")
    if isinstance(row.get("prompt"), str) and row["prompt"].strip():
        row["prompt"] = prefix + row["prompt"]
    return row


def read_rows(path: str | Path) -> Iterator[tuple[str, Any]]:
    """("file:line" or "file, row n", row) of a file. A line that cannot be parsed is returned as a RecordError."""
    if str(path).startswith("tfds:"):
        yield from read_split(str(path)[len("tfds:") :])
        return
    path = Path(path)
    if not path.is_file():
        raise UserError(f"data file {path} does not exist")
    readers = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in readers:
        raise UserError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; expected {', '.join(readers)}")
    try:
        yield from readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from error


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):  # JSON lines with the wrong suffix
        yield from _jsonl(path)
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}:{number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    row = RecordError(f"{where}: expected one JSON object per line, found {error.msg}")
                yield where, row


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                where = f"{path}:{reader.line_num}"
                surplus = RecordError(f"{where}: expected {len(reader.fieldnames or ())} columns, found more")
                yield where, surplus if None in row else row
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: not CSV: {error}") from error


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a parquet file: {error}") from error
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))


def _dig(row: Any, dotted: str) -> Any:
    """The value at "a.b.0", or None. A column with this very name, dots included, has priority."""
    if isinstance(row, Mapping) and dotted in row:
        return row[dotted]
    for part in dotted.split("."):
        if isinstance(row, Mapping):
            row = row.get(part)
        elif isinstance(row, list) and part.isdecimal() and int(part) < len(row):
            row = row[int(part)]
        else:
            return None
    return row


def _turns(turns: Any, column: str, role: str, text: str, users: tuple[str, ...]) -> Row:
    """Prompt and system text of a conversation. RecordError if it has more than one request: a record holds only one."""
    roles = [_dig(turn, role) for turn in turns] if isinstance(turns, list) else []
    if roles[-1:] == [None] or not roles or roles[-1] not in users or roles[:-1] not in ([], ["system"]):
        expected = f"one {' or '.join(users)} turn, optionally after a system turn"
        raise RecordError(f"column {column!r}: expected {expected}, found {roles or type(turns).__name__}")
    return {"prompt": _dig(turns[-1], text), "system": _dig(turns[0], text) if len(turns) > 1 else ""}


def _sharegpt_pairs(row: Row) -> Row:
    """LLaMA-Factory's preference format: conversations, chosen, rejected."""
    sides = {side: _dig(row, f"{side}.value") for side in ("chosen", "rejected")}
    system = {"system": row["system"]} if row.get("system") else {}
    return {**_turns(row.get("conversations"), "conversations", "from", "value", ("human", "user")), **sides, **system}


def _alpaca(row: Row) -> Row:
    """Alpaca's format: instruction, optional input, output."""
    parts = [p for p in (row.get("instruction"), row.get("input")) if p]
    prompt = "\n".join(parts) if all(isinstance(p, str) for p in parts) else parts
    return {"prompt": prompt or None, "response": row.get("output"), "system": row.get("system")}


def _verl(row: Row) -> Row:
    """verl's parquet format: `prompt` is a list of chat messages."""
    return _turns(row.get("prompt"), "prompt", "role", "content", ("user",))


def _labelled(row: Row) -> Row:
    """Labelled responses with the columns query, response, label."""
    return {"prompt": row.get("query"), "response": row.get("response"), "label": row.get("label")}


ADAPTERS: Mapping[str, Callable[[Row], Row]] = {
    "sharegpt_pairs": _sharegpt_pairs,
    "alpaca": _alpaca,
    "verl": _verl,
    "labelled": _labelled,
}


def columns_of(path: Path) -> dict[str, str]:
    """{"prompt": "query"} if the file calls the prompt "query", as the paper's files do; else {}."""
    head = path.open(encoding="utf-8", errors="replace").read(4096) if path.exists() else ""
    return {"prompt": "query"} if '"query"' in head and '"prompt"' not in head else {}
