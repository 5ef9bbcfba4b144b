"""Records from files: JSON, JSON lines, CSV, parquet, TFDS, and the forms that other tools write."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlaif_jax.data.records import Record, RecordError, from_row
from rlaif_jax.errors import UserError

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The records of a file and why rows were left out ("file:line: reason")."""

    records: list[Record]
    skipped: list[str]


def load(
    kind: type, path: str | Path, *, format: str = "auto", columns: Mapping[str, str] | None = None, prefix: str = "",
    limit: int = 0, on_error: str = "raise",
) -> Loaded:  # fmt: skip
    """All records of one file. `columns` maps a record's fields to the file's columns (dots reach into objects).

    `format` names an adapter: sharegpt_pairs, alpaca, verl, labelled; auto reads the record's own field names.
    Errors: UserError for a file that cannot be read, RecordError "file:line: ..." for a bad row unless on_error="skip".
    """
    if format != "auto" and format not in ADAPTERS:
        raise UserError(f"data format {format!r} is unknown; known: auto, {', '.join(ADAPTERS)}")
    adapt = ADAPTERS.get(format, lambda row: row)
    records, skipped = [], []
    for where, raw in read_rows(path):
        try:
            row = dict(adapt(raw)) | {f: _dig(raw, c) for f, c in (columns or {}).items()}
            if prefix and isinstance(row.get("prompt"), str):
                row["prompt"] = prefix + row["prompt"]
            records.append(from_row(kind, row, where))
        except (RecordError, KeyError, IndexError, TypeError) as error:
            problem = str(error) if isinstance(error, RecordError) else f"{where}: no {error} for format {format!r}"
            if on_error == "raise":
                raise RecordError(problem) from error
            skipped.append(problem)
        if limit and len(records) >= limit:
            break
    if not records:
        raise UserError(f"{path}: no usable record" + (f"; first problem: {skipped[0]}" if skipped else ""))
    return Loaded(records, skipped)


def read_rows(path: str | Path) -> Iterator[tuple[str, Row]]:
    """("file:line", row) of any readable file; "tfds:FOLDER" or "tfds:FOLDER#split" is a dataset built by `tfds_builder`."""
    if str(path).startswith("tfds:"):
        from rlaif_jax.data.tfds_builder import read_split

        yield from read_split(str(path)[len("tfds:") :])
        return
    path = Path(path)
    if not path.exists():
        raise UserError(f"data file {path} does not exist")
    readers = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in readers:
        raise UserError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; known: {', '.join(readers)}")
    for number, row in readers[path.suffix](path):
        if not isinstance(row, Mapping):
            raise RecordError(f"{path}:{number}: expected an object, found {type(row).__name__}")
        yield f"{path}:{number}", row


def _json(path: Path) -> Iterator[tuple[int, Row]]:
    text = path.read_text(encoding="utf-8")
    if not text.lstrip().startswith("["):  # JSON lines under the wrong name
        yield from _jsonl(path)
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    yield from enumerate(rows, 1)


def _jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}:{number}: not JSON: {error.msg}") from error


def _csv(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from enumerate(csv.DictReader(file), 2)


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow.parquet

    yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1)


def _dig(row: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        row = row[int(part)] if isinstance(row, list) else row[part]
    return row


def _sharegpt_pairs(row: Row) -> Row:
    """LLaMA-Factory's preference form: conversations, chosen, rejected."""
    turns = row["conversations"]
    return {"prompt": turns[-1]["value"], "chosen": row["chosen"]["value"], "rejected": row["rejected"]["value"]}


def _alpaca(row: Row) -> Row:
    prompt = "\n".join(p for p in (row["instruction"], row.get("input")) if p)
    return {"prompt": prompt, "response": row["output"], "system": row.get("system") or ""}


def _verl(row: Row) -> Row:
    """verl's parquet: `prompt` is a list of chat messages."""
    turns = row["prompt"]
    system = turns[0]["content"] if turns[0]["role"] == "system" else ""
    return {"prompt": turns[-1]["content"], "system": system}


def _labelled(row: Row) -> Row:
    return {"prompt": row["query"], "response": row["response"], "label": row["label"]}


ADAPTERS: Mapping[str, Callable[[Row], Row]] = {
    "sharegpt_pairs": _sharegpt_pairs,
    "alpaca": _alpaca,
    "verl": _verl,
    "labelled": _labelled,
}


