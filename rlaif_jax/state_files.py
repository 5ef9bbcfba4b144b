"""The small files in which a run keeps its state: written completely or not at all, and checked when they are read.

A state file is a JSON object with a "version" and a "checksum" of all other values. A file that has neither comes from an older
version and is read as it is; a file that has only one of them, or whose checksum does not fit, is damaged.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rlaif_jax.errors import UserError

_MEND = "; mend or delete that line"
_SEALED = 2  # the first version of run folders whose state files have a checksum


def write_text(path: Path, text: str) -> None:
    """Writes a file completely or not at all, also where the process is killed or the disk is full meanwhile."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, as `write_text` does."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines, as `write_text` does."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError inside becomes a UserError that names the file and what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "; free some space and start the same command again" if full else ""
        raise UserError(f"{path} cannot be written: {error.strerror or error}{hint}") from error


def read_json(path: Path) -> Any:
    """The value of a JSON file. UserError that names the file if it is missing, empty, not UTF-8 or not JSON."""
    try:
        return _parsed(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        found = "it is empty" if not path.stat().st_size else f"it is not JSON ({error})"
        raise UserError(f"{path} is damaged: {found}") from error


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error


def read_rows(path: Path, whole: bool = False) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; [] if there is no file. An incomplete last line, left by a killed process, is skipped.

    `whole`: the file was written by `write_rows`, so an empty file or an incomplete last line is damage.

    UserError that names file and line for any other line that is not a JSON object, or whose checksum does not fit. A file of rows
    without checksums is read as it is.
    """
    values = []
    *lines, rest = path.read_bytes().split(b"\n") if path.exists() else [b""]
    if whole and path.exists() and (rest or not lines):
        raise UserError(f"{path} is damaged: {'its last line is cut' if rest else 'it is empty'}")
    for number, line in enumerate(lines, 1):
        try:
            values.append(_parsed(line))
        except ValueError as error:
            raise UserError(f"{path}:{number} is damaged: it is not JSON ({error}){_MEND}") from error
    return unsealed_rows(values, lambda i: f"{path}:{i + 1}")


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with a checksum of them under "checksum"."""
    return {**values, "checksum": _checksum(values)}


def unsealed_rows(values: Sequence[Any], where: Callable[[int], str]) -> list[dict[str, Any]]:
    """Objects without their checksums, if they have any. UserError for a value that is no object, has another checksum, or has none
    where others have one; `where(i)` names value i."""
    objects = [value for value in values if isinstance(value, dict)]
    checked = any("checksum" in value for value in objects)
    for i, value in enumerate(values):
        if not isinstance(value, dict):
            raise UserError(f"{where(i)} is damaged: expected a JSON object{_MEND}")
        if checked and not is_intact(value):
            raise UserError(f"{where(i)} is damaged: its checksum does not fit{_MEND}")
    return [{k: v for k, v in value.items() if k != "checksum"} for value in objects]


def is_intact(values: Mapping[str, Any]) -> bool:
    """Whether the values have the checksum that `sealed` gave them."""
    return values.get("checksum") == _checksum({k: v for k, v in values.items() if k != "checksum"})


def _checksum(values: Mapping[str, Any]) -> str:
    text = json.dumps(json.loads(json.dumps(values)), sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"


def write_state(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a state file. `values` has a "version" of `_SEALED` or later."""
    write_json(path, sealed(values))


def read_state(path: Path) -> dict[str, Any]:
    """The values of a state file without their checksum. UserError that names the file if it is damaged."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: expected a JSON object, found {type(values).__name__}")
    version = values.get("version", 1)
    expected = "checksum" in values or not isinstance(version, int) or version >= _SEALED
    if expected and not is_intact(values):
        raise UserError(f"{path} is damaged, or was changed by hand: its checksum does not fit")
    return {k: v for k, v in values.items() if k != "checksum"}


def digests(folder: Path, skipped: Iterable[str] = ()) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its path there. `skipped`: names of files and folders that are left out.

    Hidden names are left out too: a temporary file of a killed process may be there.
    """
    skipped = set(skipped)
    found = sorted(
        path for path in folder.rglob("*")
        if path.is_file() and not any(part in skipped or part[0] == "." for part in path.relative_to(folder).parts)
    )  # fmt: skip
    with ThreadPoolExecutor() as pool:
        return {path.relative_to(folder).as_posix(): value for path, value in zip(found, pool.map(_digest, found), strict=True)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def difference(folder: Path, expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """The first file that is missing or differs from what was noted of it, as a sentence; "" where all are as they were."""
    for name, value in sorted(expected.items()):
        if found.get(name) != value:
            return f"{folder / name} is {'damaged: it differs from its checksum' if name in found else 'missing'}"
    return ""
