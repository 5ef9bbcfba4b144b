"""A table of every array's PartitionSpec, its shard on one device, its bytes, and the dimensions that could not be sharded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from rlaif_jax.errors import UserError
from rlaif_jax.sharding.memory_estimate import AnyMesh, bytes_by_mesh, mesh_key, most_on_a_device
from rlaif_jax.sharding.rules import Repair
from rlaif_jax.sharding.text import pad, printable, width
from rlaif_jax.sharding.trees import named_leaves, refuse_shared

_COLUMNS = ("name", "shape", "dtype", "spec", "on one device", "bytes", "bytes on one device", "note")
_NUMBERS = ("bytes", "bytes on one device")
_MOST_RUNS = 6


@dataclasses.dataclass(frozen=True)
class Line:
    """One array; `part` is the shape of its shard on one device of its mesh."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    spec: PartitionSpec
    part: tuple[int, ...]
    size: int
    device_size: int
    mesh: AnyMesh
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Description:
    """The table: `print` it, pass `rich()` to a rich console, or read `lines`.

    `unmatched` holds repairs whose names are not in the table; they are printed below it.
    """

    lines: tuple[Line, ...]
    unmatched: tuple[Repair, ...] = ()

    @property
    def device_bytes(self) -> int:
        """Bytes of the tree on one device; with several meshes, on the device that holds most.

        Abstract meshes are assumed to share their devices.
        """
        return most_on_a_device((line.mesh, line.device_size) for line in self.lines)

    @property
    def meshes(self) -> tuple[AnyMesh, ...]:
        """The meshes, in the order in which they first appear."""
        return tuple(mesh for mesh, _ in bytes_by_mesh((line.mesh, 0) for line in self.lines))

    def _rows(self) -> list[tuple[str, ...]]:
        """The header and one row per line, escaped; with several meshes, also a column for the mesh."""
        numbers = {mesh_key(mesh): str(i) for i, mesh in enumerate(self.meshes, 1)}
        head, rows = list(_COLUMNS), [
            [line.name, _shape(line.shape), line.dtype, spec_text(line.spec), _shape(line.part), f"{line.size:,}",
             f"{line.device_size:,}", line.note]
            for line in self.lines
        ]  # fmt: skip
        if len(numbers) > 1:
            head.insert(3, "mesh")
            for row, line in zip(rows, self.lines, strict=True):
                row.insert(3, numbers[mesh_key(line.mesh)])
        return [tuple(map(printable, row)) for row in (head, *rows)]

    def _titles(self) -> list[str]:
        """One title per mesh; with several meshes, also one for the total."""
        totals = bytes_by_mesh((line.mesh, line.size) for line in self.lines)
        on_one = bytes_by_mesh((line.mesh, line.device_size) for line in self.lines)
        titles, several = [], len(totals) > 1
        for i, ((mesh, total), (_, part)) in enumerate(zip(totals, on_one, strict=True), 1):
            axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
            which = f"mesh {i} ({axes}; {_devices(mesh)})" if several else f"mesh {axes}"
            titles.append(f"{which}: {total:,} bytes in all, {part:,} on one device")
        if several:
            shared = "" if all(isinstance(mesh, Mesh) for mesh, _ in totals) else " if abstract meshes share their devices"
            total = sum(line.size for line in self.lines)
            titles.append(f"together: {total:,} bytes in all, at most {self.device_bytes:,} on one device{shared}")
        return [printable(title) for title in titles]

    def _below(self) -> list[str]:
        return [printable(f"not in this table: {repair}") for repair in self.unmatched]

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
        text = (
            "  ".join(pad(cell, w, title in _NUMBERS) for cell, w, title in zip(row, widths, rows[0], strict=True)).rstrip()
            for row in rows
        )
        return "\n".join([*self._titles(), *text, *self._below()])

    def rich(self) -> Any:
        """The table for a rich console; lines with a repair are yellow."""
        from rich.table import Table
        from rich.text import Text

        head, *rows = self._rows()
        below = Text("\n".join(self._below()), style="yellow") if self.unmatched else None
        table = Table(*head, title=Text("\n".join(self._titles())), caption=below)
        for row in rows:
            table.add_row(*map(Text, row), style="yellow" if row[-1] else "")  # Text: brackets in a name are no markup
        return table


def describe(tree: Any, shardings: Any = None, repairs: Sequence[Repair] = ()) -> Description:
    """The table of a tree of sharded arrays, or of ShapeDtypeStructs with the `shardings` that you plan for them.

    `repairs` (see `Placement.repairs`) become notes; repairs of names that are not in the tree are listed below the table.
    Works on abstract meshes and on trees that use several meshes. UserError if two arrays share the name of a repair.
    """
    leaves = placed_leaves(tree, shardings)
    names = [name for name, _, _ in leaves]
    refuse_shared([repair.name for repair in repairs], names)
    notes: dict[str, list[str]] = {}
    for repair in repairs:
        notes.setdefault(repair.name, []).append(str(repair).removeprefix(f"{repair.name}: "))
    lines = []
    for name, x, sharding in leaves:
        part, size = sharding.shard_shape(tuple(x.shape)), x.dtype.itemsize
        lines.append(Line(
            name, tuple(x.shape), str(x.dtype), sharding.spec, part, math.prod(x.shape) * size, math.prod(part) * size,
            sharding.mesh, "; ".join(notes.get(name, ())),
        ))  # fmt: skip
    return Description(tuple(lines), tuple(repair for repair in repairs if repair.name not in names))


def placed_leaves(tree: Any, shardings: Any = None) -> list[tuple[str, Any, NamedSharding]]:
    """(name, array, NamedSharding) of every leaf; UserError for a leaf without a NamedSharding and for an empty tree.

    A leaf on a single device beside leaves on a mesh (the step of an `nnx.Optimizer`, a count) is on a mesh of that device.
    """
    if shardings is None:
        shardings = jax.tree.map(lambda x: getattr(x, "sharding", None), tree)
    structure: Any = jax.tree.structure(tree)  # JAX gives it no type
    found = structure.flatten_up_to(shardings)
    out = [(name, x, s) for (name, x), s in zip(named_leaves(tree), found, strict=True)]
    if not out:
        raise UserError("the tree has no arrays")
    if any(isinstance(s, NamedSharding) for _, _, s in out):
        out = [(name, x, _on_its_own(s)) for name, x, s in out]
    for name, x, sharding in out:
        if not isinstance(sharding, NamedSharding):
            raise UserError(f"{name} is not on a mesh (its sharding is {sharding}); shard it first, or pass shardings=")
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            raise UserError(f"{name} is a {type(x).__name__}; pass an array or a ShapeDtypeStruct instead")
    return out


def _on_its_own(sharding: Any) -> Any:
    if not isinstance(sharding, SingleDeviceSharding):
        return sharding
    return NamedSharding(Mesh(np.array(list(sharding.device_set)), ("device",)), PartitionSpec())


def _devices(mesh: AnyMesh) -> str:
    """The ids of a mesh's devices in mesh order, as "devices 0-3, 7"; a long list is cut off."""
    if not isinstance(mesh, Mesh):
        return "abstract"
    ids = np.array([d.id for d in mesh.devices.flat])
    runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1)
    text = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return "devices " + ", ".join(text[:_MOST_RUNS] + ["…"] * (len(text) > _MOST_RUNS))


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape) or "scalar"


def spec_text(spec: PartitionSpec) -> str:
    """A spec as text, the same with every version of JAX: "-, fsdp, tensor", "data+fsdp", or "replicated"."""
    parts = ("-" if p is None else p if isinstance(p, str) else "+".join(p) for p in spec)
    return ", ".join(parts) or "replicated"
