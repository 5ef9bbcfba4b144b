"""Reads records from data files: JSON, JSON lines, CSV, parquet, folders of them, and TFDS, also in the forms of other tools."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif_jax.data.files import read_rows
from rlaif_jax.data.forms import FORMS, fields_of
from rlaif_jax.data.records import Record, RecordError, from_row
from rlaif_jax.errors import UserError

FORMATS = ("auto", *FORMS)
ON_ERROR = ("raise", "skip")


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
    limit: int | None = None, on_error: str = "raise", single: bool = False,
) -> Loaded:  # fmt: skip
    """The records of a file (.json, .jsonl, .csv, .parquet), of a folder or a pattern of them, or of "tfds:FOLDER[#split]".

    `kind` is a record class. `format` is auto (by the columns of each row), chat, alpaca, sharegpt_pairs, verl or labelled
    (docs/data.md shows them all). `columns` maps fields to columns of the file and overrides the format; "a.0.b" reaches into
    objects and lists, and "" says that no column is meant. `prefix` is put before every prompt. `limit` is the maximum number of
    records; None or 0 = all.
    `single`: a chat with earlier turns is a bad row, for readers that show a request alone.
    Errors: UserError for a file that cannot be read; RecordError "file:line: ..." for a bad row. With on_error="skip" bad
    rows are skipped, and their reasons returned.
    """
    if format not in FORMATS:
        raise UserError(f"data format {format!r} is unknown; known: {', '.join(FORMATS)}")
    if on_error not in ON_ERROR:
        raise UserError(f"on_error: expected {' or '.join(ON_ERROR)}, found {on_error!r}")
    if limit is not None and limit < 0:
        raise UserError(f"limit: expected a number of rows, or 0 for all; found {limit}")
    if unknown := set(columns or {}) - {f.name for f in dataclasses.fields(kind)}:
        raise UserError(f"columns: {kind.__name__} has no field {', '.join(sorted(unknown))}")
    records, skipped = [], []
    for where, raw in read_rows(path):
        try:
            record = from_row(kind, _fields(raw, where, kind, format, columns or {}, prefix), where)
            if single and getattr(record, "history", ()):
                raise RecordError(f"{where}: expected one request and its answer, found a chat with earlier turns")
            records.append(record)
        except RecordError as error:
            if on_error == "raise":
                raise
            skipped.append(str(error))
        if limit and len(records) >= limit:
            break
    if not records:
        raise UserError(f"{path}: no usable record" + (f"; first problem: {skipped[0]}" if skipped else ""))
    return Loaded(records, skipped)


def _fields(raw: Any, where: str, kind: type, format: str, columns: Mapping[str, str], prefix: str) -> dict[str, Any]:
    """The record's fields from a raw row."""
    if isinstance(raw, RecordError):  # a line that is not JSON is handled like any bad row
        raise raw
    if not isinstance(raw, Mapping):
        raise RecordError(f"{where}: expected an object with named fields, found {type(raw).__name__}")
    try:
        row = fields_of(kind, raw, format, columns)
    except RecordError as error:
        raise RecordError(f"{where}: {error}") from error
    if isinstance(row.get("prompt"), str) and row["prompt"].strip():
        row["prompt"] = prefix + row["prompt"]
    return row
