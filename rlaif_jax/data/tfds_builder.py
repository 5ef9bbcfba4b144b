"""Writes and reads records as a versioned, sharded TFDS dataset (array_record files), without TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlaif_jax.data.records import Record
from rlaif_jax.errors import UserError

_NAMES = {
    "name": (r"[a-z][a-z0-9_]*", "lower-case letters, digits and _, beginning with a letter"),
    "version": (r"\d+\.\d+\.\d+", "three numbers like 1.0.0"),
    "split": (r"[a-z][a-z0-9_]*", "lower-case letters, digits and _, beginning with a letter"),
}


def build(
    records_by_split: Mapping[str, Sequence[Record]], name: str, version: str, out_dir: str | Path, *,
    description: str = "", shard_records: int = 10_000,
) -> Path:  # fmt: skip
    """Writes `out_dir`/`name`/`version` and returns that folder.

    `sources.load(kind, "tfds:FOLDER#split")` reads it, and so does `tfds.builder_from_directory(FOLDER)`.
    Features are the fields of the record; `meta` and `history` are JSON text, `margin` is rounded to float32. The order of records
    is kept.
    The folder is written atomically. UserError if it exists, a split is empty, or the records are of several kinds.
    """
    folder = Path(out_dir).expanduser() / _checked("name", name) / _checked("version", version)
    if folder.exists():
        raise UserError(f"dataset {folder} exists, and versions are never overwritten: choose another version")
    kind = _only_kind(records_by_split)
    if shard_records < 1:
        raise UserError(f"shard_records: expected at least 1, found {shard_records}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{version}.", dir=folder.parent))
    try:
        _write(records_by_split, kind, name, version, scratch, description, shard_records)
        scratch.chmod(0o755)  # mkdtemp's folder is private
        scratch.rename(folder)
    except OSError as error:
        raise UserError(f"dataset {folder}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def read_split(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("folder#split, row n", record fields) from "FOLDER#split". "#split" is optional if there is only one."""
    folder, _, split = path.partition("#")
    if not (Path(folder).expanduser() / "dataset_info.json").exists():
        raise UserError(f"dataset {folder}: it has no dataset_info.json; expected a folder NAME/VERSION written by TFDS")
    try:
        yield from _split_rows(folder, split)
    except UserError:
        raise
    except Exception as error:  # the library raises any error of its parsers
        raise UserError(f"dataset {folder}: cannot be read: {str(error).strip().split(chr(10))[0] or repr(error)}") from error


def _split_rows(folder: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # The import takes seconds, so it is done only on use.
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(Path(folder).expanduser()))
    splits = sorted(builder.info.splits)
    if not split and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        found = repr(split) if split else "none"
        raise UserError(f"dataset {folder}: expected a split after #, one of {', '.join(splits)}; found {found}")
    for number, row in enumerate(builder.as_data_source(split), 1):
        yield f"{folder}#{split}, row {number}", {name: _plain(value) for name, value in row.items()}


def _write(records_by_split, kind: type, name: str, version: str, folder: Path, description: str, shard_records: int):
    import tensorflow_datasets as tfds

    # An identity instead of a builder class: a class would need its source code in the data folder.
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(version), data_dir=str(folder), module_name=__name__
    )
    info = tfds.core.DatasetInfo(builder=identity, description=description or name, features=_features(kind))
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=shard_records, file_format="array_record")
    writer.initialize_splits(list(records_by_split))
    for split, records in records_by_split.items():
        writer.add_examples({split: [_row(record, split, i) for i, record in enumerate(records)]})
    writer.close_all()


def _features(kind: type) -> Any:
    import tensorflow_datasets as tfds

    numbers = {"label": np.int64, "margin": np.float32}
    names = [f.name for f in dataclasses.fields(kind)]
    return tfds.features.FeaturesDict(
        {n: tfds.features.Scalar(numbers[n]) if n in numbers else tfds.features.Text() for n in names}
    )


def _row(record: Record, split: str, index: int) -> dict[str, Any]:
    row = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    try:
        row["meta"] = json.dumps(dict(record.meta), ensure_ascii=False)
        if "history" in row:
            row["history"] = json.dumps(row["history"], ensure_ascii=False)
    except TypeError as error:
        raise UserError(f"split {split}, record {index}: field 'meta': expected JSON values: {error}") from error
    return row


def _plain(value: Any) -> Any:
    value = value.decode("utf-8") if isinstance(value, bytes) else value
    return value.item() if isinstance(value, np.generic) else value


def _only_kind(records_by_split: Mapping[str, Sequence[Record]]) -> type:
    for split, records in records_by_split.items():
        _checked("split", split)
        if not records:
            raise UserError(f"split {split}: expected records, found none")
    kinds = {type(record) for records in records_by_split.values() for record in records}
    if len(kinds) != 1:
        found = ", ".join(sorted(k.__name__ for k in kinds)) or "none"
        raise UserError(f"a dataset must have records of one kind; found {found}")
    return kinds.pop()


def _checked(what: str, value: str) -> str:
    pattern, expected = _NAMES[what]
    if not re.fullmatch(pattern, value):
        raise UserError(f"{what}: expected {expected}; found {value!r}")
    return value
