"""Who holds what: a table of every array's spec, its part on one device, and what had to be repaired."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from rlaif_jax.errors import UserError
from rlaif_jax.sharding.rules import Repair
from rlaif_jax.sharding.trees import leaf_name

_COLUMNS = ("name", "shape", "dtype", "spec", "on one device", "bytes", "bytes on one device", "note")


@dataclasses.dataclass(frozen=True)
class Line:
    """One array; `part` is the shape of what one device holds."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    spec: PartitionSpec
    part: tuple[int, ...]
    size: int
    device_size: int
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Description:
    """The table; `print` it, give `rich()` to a rich console, or read `lines`."""

    lines: tuple[Line, ...]
    mesh: dict[str, int]

    @property
    def device_bytes(self) -> int:
        """Bytes of the whole tree on one device."""
        return sum(line.device_size for line in self.lines)

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (line.name, _shape(line.shape), line.dtype, spec_text(line.spec), _shape(line.part), f"{line.size:,}",
             f"{line.device_size:,}", line.note)
            for line in self.lines
        ]  # fmt: skip

    def _title(self) -> str:
        total = sum(line.size for line in self.lines)
        mesh = ", ".join(f"{axis} {size}" for axis, size in self.mesh.items())
        return f"mesh {mesh}: {total:,} bytes in all, {self.device_bytes:,} on one device"

    def __str__(self) -> str:
        cells = [_COLUMNS, *self._cells()]
        widths = [max(len(row[i]) for row in cells) for i in range(len(_COLUMNS))]
        rows = ("  ".join(c.rjust(w) if i in (5, 6) else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
                for row in cells)  # fmt: skip
        return "\n".join([self._title(), *(row.rstrip() for row in rows)])

    def rich(self) -> Any:
        """The table for a rich console; lines with a repair are marked."""
        from rich.table import Table

        table = Table(*_COLUMNS, title=self._title())
        for row in self._cells():
            table.add_row(*row, style="yellow" if row[-1] else "")
        return table


def describe(tree: Any, shardings: Any = None, repairs: Sequence[Repair] = ()) -> Description:
    """The table of a tree of arrays as they lie; or of ShapeDtypeStructs with the shardings that they are to have.

    `repairs` (see `Placement.repairs`) become notes. Works for any mesh, also one whose devices are not there.
    """
    notes: dict[str, list[str]] = {}
    for repair in repairs:
        notes.setdefault(repair.name, []).append(str(repair).removeprefix(f"{repair.name}: "))
    lines, mesh = [], None
    for name, x, sharding in placed_leaves(tree, shardings):
        part, mesh = sharding.shard_shape(tuple(x.shape)), sharding.mesh
        size = x.dtype.itemsize
        lines.append(Line(
            name, tuple(x.shape), str(x.dtype), sharding.spec, part, math.prod(x.shape) * size, math.prod(part) * size,
            "; ".join(notes.get(name, ())),
        ))  # fmt: skip
    return Description(tuple(lines), dict(mesh.shape))


def placed_leaves(tree: Any, shardings: Any = None) -> list[tuple[str, Any, NamedSharding]]:
    """(name, array, its NamedSharding) of every leaf; UserError for a leaf that has none, or for an empty tree."""
    if shardings is None:
        shardings = jax.tree.map(lambda x: getattr(x, "sharding", None), tree)
    names = jax.tree_util.tree_leaves_with_path(tree)
    found = jax.tree.structure(tree).flatten_up_to(shardings)
    out = [(leaf_name(path), x, s) for (path, x), s in zip(names, found, strict=True)]
    if not out:
        raise UserError("the tree holds no array")
    for name, _, sharding in out:
        if not isinstance(sharding, NamedSharding):
            raise UserError(f"{name} lies on no mesh ({sharding}); place it first, or pass its shardings")
    return out


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape) or "scalar"


def spec_text(spec: PartitionSpec) -> str:
    """A spec in words, the same with every version of JAX: "-, fsdp, tensor", "data+fsdp", or "whole"."""
    parts = ("-" if p is None else p if isinstance(p, str) else "+".join(p) for p in spec)
    return ", ".join(parts) or "whole"
