"""Reads the rows of data files: JSON, JSON lines, CSV, parquet, a folder of them, and TFDS. What a row means is not known here.

Text is UTF-8 everywhere, with or without a byte order mark. JSON lines end with "\\n" only: other separators, such as U+2028, are
part of a text.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlaif_jax.data.records import RecordError
from rlaif_jax.data.tfds_builder import read_split
from rlaif_jax.errors import UTF16, UserError, decoded

Rows = Iterator[tuple[str, Any]]
TFDS = "tfds:"
_SHARD = re.compile(r"(.*?)[-_.]?(\d+)-of-(\d+)")  # train-00000-of-00002
_SPLIT = re.compile(r"(?:^|[^a-z])(train|test|val|valid|validation|dev|eval)(?![a-z])", re.IGNORECASE)
_LONGEST_CELL = 2**31 - 1  # the module's own limit is 131,072 characters


def read_rows(path: str | Path) -> Rows:
    """("file:line" or "file, row n", row) of a file, a folder or a pattern such as "data/train-*.parquet".

    A row that cannot be parsed comes as a RecordError. UserError for what cannot be read at all.
    """
    if str(path).startswith(TFDS):
        yield from read_split(str(path)[len(TFDS) :])
        return
    for file in files_of(path):
        yield from _READERS[file.suffix.lower()](file)


def files_of(path: str | Path) -> list[Path]:
    """The files that `path` names: itself, the data files of a folder, or those of a pattern, in order of their names."""
    path = Path(path)
    if path.is_file():
        found = [path]
        if path.suffix.lower() not in _READERS:
            raise UserError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; expected {', '.join(_READERS)}")
    elif (path / "dataset_info.json").exists():
        raise UserError(f"{path}: a folder of a data set library; for TFDS write {TFDS}{path}, else export it as parquet")
    elif path.is_dir():
        found = [f for f in path.iterdir() if f.is_file() and f.suffix.lower() in _READERS and f.name[0] not in "._"]
    elif any(c in path.name for c in "*?["):
        found = [f for f in path.parent.glob(path.name) if f.is_file() and f.suffix.lower() in _READERS]
    else:
        raise UserError(f"data file {path} does not exist")
    return _shards(path, sorted(found, key=lambda f: f.name))


def _shards(path: Path, found: Sequence[Path]) -> list[Path]:
    """The files if they are the shards of one data set, and all of them. Training and test files together would be a leak."""
    if not found:
        raise UserError(f"{path}: it has no data file; expected files that end in {', '.join(_READERS)}")
    named = [_SHARD.fullmatch(f.stem) for f in found]
    splits = [_SPLIT.search(f.stem) for f in found]
    sets = {
        (shard and (shard[1], shard[3]), split and split[1].lower(), file.suffix.lower())
        for shard, split, file in zip(named, splits, found, strict=True)
    }
    if len(sets) > 1:
        names = ", ".join(f.name for f in found[:6]) + (" ..." if len(found) > 6 else "")
        raise UserError(
            f"{path}: it has files of several sets ({names}); name the file, or the files by a pattern such as "
            f"{path if path.is_dir() else path.parent}/train-*{found[0].suffix}"
        )
    if path.is_dir() and named[0] and len(found) != int(named[0][3]):
        raise UserError(f"{path}: expected {int(named[0][3])} shards ({found[0].name} ...), found {len(found)}")
    return list(found)


def parse_json(text: str) -> Any:
    """The value of a JSON text. ValueError also for a name that is there twice, too deep nesting and too long a number."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("the values are nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return found


def _why(error: ValueError) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _json(path: Path) -> Rows:
    text = decoded(path.read_bytes(), str(path))
    if not text.lstrip().startswith("["):
        yield from _objects(path, text)
        return
    decoder, at, line, number, counted = json.JSONDecoder(object_pairs_hook=_object), text.index("[") + 1, 1, 0, 0
    while (at := _skip(text, at)) < len(text) and text[at] != "]":
        number += 1
        line, counted = line + text.count("\n", counted, at), at
        try:
            row, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            here = getattr(error, "lineno", line)
            why = "the values are nested too deeply" if isinstance(error, RecursionError) else _why(error)
            raise UserError(f"{path}:{here}: not JSON: {why}") from error
        yield f"{path}:{line}, row {number}", row
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
            if text[at : at + 1] != "]":
                continue
        elif text[at : at + 1] == "]":
            break
        raise UserError(f"{path}:{text.count(chr(10), 0, at) + 1}: not JSON: expected a comma and the next row, or ] at the end")
    if text[at : at + 1] != "]" or text[at + 1 :].strip():
        raise UserError(f"{path}:{text.count(chr(10), 0, at) + 1}: not JSON: expected ] and then nothing at the end of the list")


def _objects(path: Path, text: str) -> Rows:
    """A .json file without a list: one object over several lines, or JSON lines with the wrong suffix."""
    try:
        row = parse_json(text)
    except ValueError:
        yield from _jsonl(path)
        return
    yield f"{path}:1, row 1", row


_SPACE = re.compile(r"[ \t\r\n]*")


def _skip(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()


def _jsonl(path: Path) -> Rows:
    with path.open("rb") as file:  # iterating over bytes splits on \n alone
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            if number == 1:
                if line[:2] in UTF16:
                    decoded(line, str(path))
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                row: Any = parse_json(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                row = RecordError(f"{where}: not UTF-8 at byte {error.start} of the line; convert the file to UTF-8")
            except ValueError as error:
                row = RecordError(f"{where}: expected one JSON object per line: {_why(error)}")
            yield where, row


def _csv(path: Path) -> Rows:
    csv.field_size_limit(_LONGEST_CELL)
    lines = _Lines(decoded(path.read_bytes(), str(path)))
    reader = csv.reader(lines, strict=True)  # strict: a quote in the wrong place is an error, and not part of another text
    header: list[str] | None = None
    try:
        for cells in reader:
            first = lines.begin()
            where = f"{path}:{first}"
            if not cells:
                continue
            if header is None:
                header = _header(path, first, cells)
            elif len(cells) != len(header):
                found = "more" if len(cells) > len(header) else f"only {len(cells)}"
                yield where, RecordError(f"{where}: expected {len(header)} columns, found {found}")
            else:
                yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise UserError(f"{path}:{lines.open_quote()}: not CSV: the quote that opens in this line is never closed") from error
        raise UserError(f"{path}:{lines.open_quote()}: not CSV: {error} (a quote inside a quoted text is written twice)") from error


def _header(path: Path, line: int, cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise UserError(f"{path}:{line}: two columns are named {twice[0]!r}; rename one of them")
    return names


class _Lines:
    """The lines of a CSV text with their ends, as the csv module wants them. Remembers those of the current row."""

    def __init__(self, text: str):
        self._lines = re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$", text)
        self._next = self._first = 0

    def __iter__(self) -> Iterator[str]:
        while self._next < len(self._lines):
            self._next += 1
            yield self._lines[self._next - 1]

    def begin(self) -> int:
        """The row that was read is complete; its first line, counted from 1."""
        first, self._first = self._first + 1, self._next
        return first

    def open_quote(self) -> int:
        """The line in which the last quoted cell of the current row begins."""
        opened, quoted, before = self._first + 1, False, ","
        for number, line in enumerate(self._lines[self._first : self._next], self._first + 1):
            for c in line:
                if c == '"' and not quoted and before in ",\r\n":
                    quoted, opened = True, number
                elif c == '"' and quoted:
                    quoted = False
                elif c == '"' and before == '"':  # a doubled quote inside a quoted cell
                    quoted = True
                before = c
        return opened


def _parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 after row {number}: write its texts as UTF-8") from error
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a parquet file: {str(error).strip().splitlines()[0]}") from error


_READERS: dict[str, Callable[[Path], Rows]] = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
