"""Maps logical axis names to mesh axes. A dimension that cannot be sharded stays unsharded and is reported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from jax.sharding import PartitionSpec

from rlaif_jax.errors import UserError

Rules = Mapping[str, str | tuple[str, ...] | None]  # logical axis -> mesh axes; () or None = not sharded
Axes = tuple[str | tuple[str, ...] | None, ...]  # per dimension: a name, several names, or None = not sharded

DEFAULT_RULES: dict[str, tuple[str, ...]] = {
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
_WHOLE: dict[str, tuple[str, ...]] = {axis: () for axis in DEFAULT_RULES}

# default: weights are sharded over fsdp and tensor. fsdp: every weight's width is sharded over both axes; no tensor parallelism.
# tensor: sharded over tensor, replicated over fsdp. replicated: pure data parallelism.
RULE_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "default": DEFAULT_RULES,
    "fsdp": {**_WHOLE, "batch": ("data", "fsdp", "tensor"), "context": ("context",), "embed": ("fsdp", "tensor")},
    "tensor": {**DEFAULT_RULES, "embed": ()},
    "replicated": {**_WHOLE, "batch": ("data", "fsdp", "tensor"), "context": ("context",)},
}


class Repair(NamedTuple):
    """A dimension that a rule would shard but that has to stay unsharded, and why."""

    name: str
    dimension: int
    size: int
    mesh_axes: tuple[str, ...]
    reason: str = ""

    def __str__(self) -> str:
        reason = self.reason or f"is not divisible by mesh axes {'+'.join(self.mesh_axes)}"
        return f"{self.name}: dimension {self.dimension} of size {self.size} {reason}; not sharded"


def spec_for(
    axes: Axes, shape: tuple[int, ...], mesh_sizes: Mapping[str, int], rules: Rules, name: str = ""
) -> tuple[PartitionSpec, tuple[Repair, ...]]:
    """The PartitionSpec of one array, and the repairs: dimensions that cannot be sharded as the rules say.

    An entry of `axes` is a logical axis (a name in `rules`), a mesh axis, a tuple of these, or None. A dimension is repaired
    (not sharded, and reported) if its size is not divisible or if its mesh axis is already used in this array. JAX itself would
    raise in `device_put`, and silently replicate in a constraint. UserError for an unknown name, and unless there is one entry per
    dimension.
    """
    name = name or "the array"
    if axes is None or len(axes) != len(shape):
        raise UserError(f"{name}: {0 if axes is None else len(axes)} axes {axes} for an array of shape {tuple(shape)}")
    parts: list[str | tuple[str, ...] | None] = []
    repairs: list[Repair] = []
    used: set[str] = set()
    for dimension, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        wanted = _mesh_axes(axis, mesh_sizes, rules, name)
        mesh_axes = tuple(a for a in wanted if mesh_sizes.get(a, 1) > 1)
        if taken := used.intersection(mesh_axes) | {a for a in mesh_axes if mesh_axes.count(a) > 1}:
            repairs.append(Repair(name, dimension, size, mesh_axes, f"cannot use {', '.join(sorted(taken))} a second time"))
            mesh_axes = ()
        elif size % math.prod(mesh_sizes[a] for a in mesh_axes):
            repairs.append(Repair(name, dimension, size, mesh_axes))
            mesh_axes = ()
        used.update(mesh_axes)
        parts.append(mesh_axes if len(mesh_axes) > 1 else (mesh_axes[0] if mesh_axes else None))
    while parts and parts[-1] is None:
        parts.pop()
    return PartitionSpec(*parts), tuple(repairs)


def _mesh_axes(axis, mesh_sizes: Mapping[str, int], rules: Rules, name: str) -> tuple[str, ...]:
    if axis is None:
        return ()
    if isinstance(axis, (tuple, list)):
        return tuple(a for part in axis for a in _mesh_axes(part, mesh_sizes, rules, name))
    if axis in rules:
        return rule_axes(rules[axis])
    if axis in mesh_sizes:
        return (axis,)
    raise UserError(f"{name}: no rule for logical axis {axis!r}; known: {', '.join([*rules, *mesh_sizes])}")


def rule_axes(rule: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of a rule (one name, several, or None) as a tuple."""
    return () if rule is None else (rule,) if isinstance(rule, str) else tuple(rule)


def split_axes(spec: PartitionSpec, rank: int) -> list[tuple[str, ...]]:
    """The mesh axes of each dimension of a PartitionSpec, for an array with `rank` dimensions."""
    parts = [() if p is None else (p,) if isinstance(p, str) else tuple(p) for p in spec]
    return parts + [()] * (rank - len(parts))
