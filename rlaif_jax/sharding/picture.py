"""A picture of who holds what: one row per array, one column per device, one colour per part of the array."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh, NamedSharding

from rlaif_jax.errors import UserError
from rlaif_jax.sharding.describe import Description, describe, placed_leaves
from rlaif_jax.sharding.rules import split_axes

_MOST_DEVICES, _MOST_ROWS = 64, 60


def held_parts(sharding: NamedSharding, rank: int) -> tuple[np.ndarray, int]:
    """Which part of an array each device of the mesh holds, in the mesh's order, and how many parts there are.

    Parts are numbered from 0 in row-major order; devices with the same number hold the same data.
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
    """Writes the picture of a tree (see `describe`) as PNG or SVG, by the suffix of `path`; returns the path.

    The number in a cell is the part of the array that the device holds; grey arrays are whole everywhere. The bars below
    are the bytes on each device. The largest 60 arrays are shown; UserError for more than 64 devices.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    leaves = placed_leaves(tree, shardings)
    devices = _device_names(leaves[0][2])
    if len(devices) > _MOST_DEVICES:
        raise UserError(f"a picture of {len(devices)} devices cannot be read (at most {_MOST_DEVICES}); print describe(...)")
    table = describe(tree, shardings)
    order = sorted(range(len(leaves)), key=lambda i: -table.lines[i].size)[:_MOST_ROWS]
    rows = [leaves[i] for i in sorted(order)]
    parts = [held_parts(sharding, len(x.shape)) for _, x, sharding in rows]
    figure = Figure(figsize=(4 + 0.45 * len(devices), 1.9 + 0.28 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, height_ratios=(max(len(rows), 3), 3), sharex=True)
    _grid(upper, rows, parts, table)
    lower.bar(range(len(devices)), [table.device_bytes / 2**20] * len(devices), color="0.4")
    lower.set_ylabel("MiB")
    lower.set_xlabel("process:device" if isinstance(leaves[0][2].mesh, Mesh) else "place on the mesh", fontsize=8)
    lower.set_xticks(range(len(devices)), devices, fontsize=7, rotation=90)
    left_out = len(leaves) - len(rows)
    upper.set_title(title + (f" ({left_out} small arrays left out)" if left_out else ""), fontsize=10)
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"{path}: expected a file name that ends in .png or .svg")
    figure.savefig(path, dpi=130)
    return path


def _grid(axes: Any, rows: list, parts: list[tuple[np.ndarray, int]], table: Description) -> None:
    import matplotlib

    colours = matplotlib.colormaps["viridis"]
    image = np.array([
        [(0.85, 0.85, 0.85, 1.0) if count == 1 else colours(0.15 + 0.8 * number / (count - 1)) for number in numbers]
        for numbers, count in parts
    ])  # fmt: skip
    axes.imshow(image, aspect="auto", interpolation="nearest")
    for y, (numbers, count) in enumerate(parts):
        for x, number in enumerate(numbers):
            light = count > 1 and number / (count - 1) < 0.6
            axes.text(x, y, str(number), ha="center", va="center", fontsize=6, color="white" if light else "black")
    sizes = {line.name: "x".join(map(str, line.shape)) for line in table.lines}
    axes.set_yticks(range(len(rows)), [f"{name}  {sizes[name]}" for name, _, _ in rows], fontsize=7)
    axes.tick_params(bottom=False, labelbottom=False)


def _device_names(sharding: NamedSharding) -> list[str]:
    """Each device by its process and number, or by its place on a mesh that has no devices."""
    mesh = sharding.mesh
    if isinstance(mesh, Mesh):
        return [f"{d.process_index}:{d.id}" for d in mesh.devices.flat]
    return [" ".join(map(str, where)) for where in itertools.product(*(range(n) for n in dict(mesh.shape).values()))]
