"""Draws which device holds which shard: one row per array, one column per device, one color per shard."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rlaif_jax.errors import UserError
from rlaif_jax.language.fonts import families
from rlaif_jax.sharding.describe import Description, describe, placed_leaves
from rlaif_jax.sharding.memory_estimate import AnyMesh, mesh_key
from rlaif_jax.sharding.rules import split_axes
from rlaif_jax.sharding.text import printable, shorten, width

_MOST_DEVICES, _MOST_ROWS, _MOST_COLUMNS = 64, 60, 60
_GREY, _ABSENT = (0.85, 0.85, 0.85, 1.0), (1.0, 1.0, 1.0, 1.0)


def held_parts(sharding: NamedSharding, rank: int) -> tuple[np.ndarray, int]:
    """Returns the number of the shard that each device holds, in mesh order, and the number of different shards.

    Shards are numbered from 0 in row-major order. Devices with the same number hold the same data.
    """
    sizes = dict(sharding.mesh.shape)
    dims = split_axes(sharding.spec, rank)
    parts = [int(np.prod([sizes[a] for a in dim], dtype=int)) for dim in dims]
    numbers = []
    for where in itertools.product(*(range(n) for n in sizes.values())):
        at = dict(zip(sizes, where, strict=True))
        number = 0
        for dim, count in zip(dims, parts, strict=True):
            inside = 0
            for axis in dim:
                inside = inside * sizes[axis] + at[axis]
            number = number * count + inside
        numbers.append(number)
    return np.array(numbers), int(np.prod(parts, dtype=int))


def draw(path: str | Path, tree: Any, shardings: Any = None, title: str = "") -> Path:
    """Draws a tree (see `describe`) as PNG or SVG, by the suffix of `path`; returns the path.

    The number in a cell is the shard that the device holds. Gray rows are replicated arrays; a blank cell means that the array
    is not on this device. The bars below show the bytes on each device. Only the 60 largest arrays are drawn, and long names
    are shortened in the middle. UserError for more than 64 devices, and for several meshes of which one is abstract.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"{path}: expected a file name that ends in .png or .svg")
    table = describe(tree, shardings)
    columns = device_columns(table.meshes)
    if len(columns) > _MOST_DEVICES:
        raise UserError(f"a picture shows at most {_MOST_DEVICES} devices, not {len(columns)} devices; print describe(...) instead")
    leaves = placed_leaves(tree, shardings)
    rows = sorted(sorted(range(len(leaves)), key=lambda i: -table.lines[i].size)[:_MOST_ROWS])
    if left_out := len(leaves) - len(rows):
        title += f" ({left_out} small arrays left out)"
    labels = [_label(table.lines[i].name, table.lines[i].shape) for i in rows]
    inches = 1 + max(3, 0.065 * max(map(width, labels))) + 0.45 * len(columns)
    title = "\n".join(_wrapped(printable(line), int(12 * inches)) for line in title.splitlines())
    plain = {"parse_math": False, "usetex": False, "family": families(title + "".join(labels))}

    figure = Figure(figsize=(inches, 1.9 + 0.28 * len(rows) + 0.17 * title.count("\n")), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, height_ratios=(max(len(rows), 3), 3), sharex=True)
    _grid(upper, [held_by(columns, leaves[i][2], len(leaves[i][1].shape)) for i in rows])
    upper.set_yticks(range(len(rows)), labels, fontsize=7, **plain)
    upper.tick_params(bottom=False, labelbottom=False)
    figure.suptitle(title, fontsize=10, **plain)
    lower.bar(range(len(columns)), _bytes(columns, table) / 2**20, color="0.4")
    lower.set_ylabel("MiB")
    lower.set_xlabel("process:device" if isinstance(table.meshes[0], Mesh) else "position in the mesh", fontsize=8)
    lower.set_xticks(range(len(columns)), list(columns.values()), fontsize=7, rotation=90)
    figure.savefig(path, dpi=130)
    return path


def device_columns(meshes: tuple[AnyMesh, ...]) -> dict[Hashable, str]:
    """The columns and their labels: the devices of all meshes, by process and id; or the positions in the one abstract mesh.

    UserError for several meshes of which one is abstract: it is unknown which of their devices are the same.
    """
    if all(isinstance(mesh, Mesh) for mesh in meshes):
        devices: set[jax.Device] = {d for mesh in meshes for d in mesh.devices.flat}
        ordered = sorted(devices, key=lambda d: (d.process_index, d.id))
        return {d: f"{d.process_index}:{d.id}" for d in ordered}
    if len(meshes) > 1:
        raise UserError(
            f"the arrays are on {len(meshes)} meshes and at least one of them is abstract, so they have no devices in common; "
            "draw the arrays of each mesh separately, or print describe(...)"
        )
    return {where: " ".join(map(str, where)) for where in _places(meshes[0])}


def held_by(columns: dict[Hashable, str], sharding: NamedSharding, rank: int) -> tuple[np.ndarray, int]:
    """`held_parts` by column: the shard that each column holds (-1 = the array is not there), and the number of shards."""
    numbers, count = held_parts(sharding, rank)
    held = dict(zip(_places(sharding.mesh), numbers, strict=True))
    return np.array([held.get(column, -1) for column in columns]), count


def _places(mesh: AnyMesh) -> list[Any]:
    """The devices in mesh order; for an abstract mesh, the positions as tuples of numbers."""
    return list(mesh.devices.flat) if isinstance(mesh, Mesh) else list(itertools.product(*map(range, mesh.shape.values())))


def _bytes(columns: dict[Hashable, str], table: Description) -> np.ndarray:
    places = {mesh_key(mesh): set(_places(mesh)) for mesh in table.meshes}
    total = dict.fromkeys(columns, 0)
    for line in table.lines:
        for place in places[mesh_key(line.mesh)]:
            total[place] += line.device_size
    return np.array(list(total.values()))


def _label(name: str, shape: tuple[int, ...]) -> str:
    return f"{shorten(printable(name), _MOST_COLUMNS)}  {'x'.join(map(str, shape))}"


def _wrapped(line: str, columns: int) -> str:
    return textwrap.fill(line, max(columns * len(line) // max(width(line), 1), 1))


def _grid(axes: Any, rows: list[tuple[np.ndarray, int]]) -> None:
    import matplotlib

    colours = matplotlib.colormaps["viridis"]

    def colour(number, count):
        return _ABSENT if number < 0 else _GREY if count == 1 else colours(0.15 + 0.8 * number / (count - 1))

    image = np.array([[colour(number, count) for number in numbers] for numbers, count in rows])
    axes.imshow(image, aspect="auto", interpolation="nearest")
    for y, (numbers, count) in enumerate(rows):
        for x, number in enumerate(numbers):
            light = count > 1 and number / (count - 1) < 0.6
            text = str(number) if number >= 0 else ""
            axes.text(x, y, text, ha="center", va="center", fontsize=6, color="white" if light else "black")
