"""From logical axis names to mesh axes, with repair of what does not divide."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from jax.sharding import PartitionSpec

Rules = Mapping[str, tuple[str, ...]]

DEFAULT_RULES: Rules = {
    "batch": ("data", "fsdp"),
    "context": ("context",),
    "activation": (),
    "layers": (),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "norm": (),
}


class Repair(NamedTuple):
    """A dimension that stays whole because the mesh axes do not divide it."""

    name: str
    dimension: int
    size: int
    mesh_axes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}: dimension {self.dimension} of size {self.size} does not divide by {self.mesh_axes}; whole"


def spec_for(
    axes: tuple[str | None, ...], shape: tuple[int, ...], mesh_sizes: Mapping[str, int], rules: Rules, name: str = ""
) -> tuple[PartitionSpec, tuple[Repair, ...]]:
    """The PartitionSpec of one array and what had to be repaired.

    JAX raises in `device_put` and silently replicates in a constraint where sizes do not divide; here both are the
    same decision, and it is reported. Errors: an axis name that no rule names (KeyError with the known names).
    """
    parts, repairs = [], []
    for dimension, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        if axis is not None and axis not in rules:
            raise KeyError(f"{name}: no rule for logical axis {axis!r}; known: {', '.join(rules)}")
        mesh_axes = tuple(a for a in (rules[axis] if axis else ()) if mesh_sizes.get(a, 1) > 1)
        if size % math.prod(mesh_sizes[a] for a in mesh_axes):
            repairs.append(Repair(name, dimension, size, mesh_axes))
            mesh_axes = ()
        parts.append(mesh_axes if len(mesh_axes) > 1 else (mesh_axes[0] if mesh_axes else None))
    while parts and parts[-1] is None:
        parts.pop()
    return PartitionSpec(*parts), tuple(repairs)
