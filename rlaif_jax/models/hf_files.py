"""The safetensors files of a Hugging Face folder: lists their tensors and reads slices of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rlaif_jax.errors import UserError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


_MOST_BYTES = 64 * 2**20  # of a JSON file of a folder; the index of the largest models has 2 MiB


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a folder. UserError if it cannot be read, is too large, or is no object."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path}: has more than {_MOST_BYTES >> 20} MiB, too much for a file of settings")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: not JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected an object, found {type(raw).__name__}")
    return raw


def hub_name_help(folder: str | Path) -> str:
    """How to get a model's folder, where `folder` looks like its name on the Hub; else an empty text."""
    name = str(folder)
    if Path(name).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return ""
    command = f"hf download {name} --local-dir {name.rpartition('/')[2]}"
    return f". It looks like a name on the Hub. Nothing is downloaded here; get the folder first: {command}"


def shown(value: Any) -> str:
    """A value of a file for a message, at most 80 characters of it."""
    text = "a number of more than 80 digits" if type(value) is int and abs(value) >= 10**80 else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


class Checkpoint:
    """The tensors of a folder by name, read in slices. Only one file is open at a time, for one tensor."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._file_of = self._inventory()

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._file_of)

    def slices(self, name: str) -> Any:
        """A context manager for one tensor: an object with get_shape(), get_dtype() and `[slices] -> NumPy array`."""
        return _Slices(self._file_of[name], name)

    def _inventory(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        index = self._index()
        for file in self._files(index):
            try:
                with safe_open(file, "numpy") as tensors:
                    names = list(tensors.keys())
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file}: cannot be read as safetensors: {error}") from error
            if twice := sorted(found.keys() & set(names)):
                raise UserError(f"{self.folder}: tensors are in two files: {listed(twice)}")
            found |= dict.fromkeys(names, file)
        self._check_index(index, found)
        return found

    def _index(self) -> dict[str, str] | None:
        """Tensor -> file, as the index says; None without an index."""
        path = self.folder / INDEX
        if not path.exists():
            return None
        index = read_object(path).get("weight_map")
        if not isinstance(index, dict) or not index or not all(isinstance(file, str) for file in index.values()):
            raise UserError(f"{path}: expected an object with weight_map, the file of each tensor")
        return index

    def _files(self, index: dict[str, str] | None) -> list[Path]:
        if index is None:
            if not (self.folder / SINGLE).exists():
                raise UserError(f"{self.folder}: found neither {SINGLE} nor {INDEX}; only safetensors are read")
            return [self.folder / SINGLE]
        files, there = sorted(set(index.values())), {path.name for path in self.folder.iterdir() if path.is_file()}
        if wrong := [name for name in files if name not in there]:
            raise UserError(f"{self.folder / INDEX}: names files that are not in the folder: {listed(map(repr, wrong))}")
        return [self.folder / name for name in files]

    def _check_index(self, index: dict[str, str] | None, found: dict[str, Path]) -> None:
        """UserError if index and files differ: then they come from different checkpoints."""
        if index is None:
            return
        problems = []
        if absent := sorted(name for name, file in index.items() if found.get(name) != self.folder / file):
            problems.append("not in the file that the index names: " + listed(f"{name} ({index[name]})" for name in absent))
        if unlisted := sorted(found.keys() - index.keys()):
            problems.append("in a file, but not in the index: " + listed(f"{name} ({found[name].name})" for name in unlisted))
        if problems:
            raise UserError(f"{self.folder / INDEX}: does not fit the files: {'; '.join(problems)}")


class _Slices:
    """One tensor. Its file is open only inside the `with` block, so that its pages do not stay in memory."""

    def __init__(self, file: Path, name: str):
        self._context, self._name = safe_open(file, "numpy"), name

    def __enter__(self):
        return self._context.__enter__().get_slice(self._name)

    def __exit__(self, *error):
        return self._context.__exit__(*error)


def listed(names: Iterable[str], separator: str = ", ", most: int = 24) -> str:
    """The names as text; after `most` of them, only how many more there are."""
    names = list(names)
    return separator.join(names[:most]) + (f" ... and {len(names) - most} more" if len(names) > most else "")
