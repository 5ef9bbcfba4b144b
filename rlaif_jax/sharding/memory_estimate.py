"""Estimates the memory of a tree on one device of a mesh, without allocating it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from rlaif_jax.sharding.optimizer import optimizer_shardings
from rlaif_jax.sharding.placement import Placement
from rlaif_jax.sharding.rules import DEFAULT_RULES, Rules, spec_for, split_axes

AnyMesh = Mesh | AbstractMesh


def bytes_per_device(axes: Any, abstract: Any, mesh_sizes: Mapping[str, int], rules: Rules = DEFAULT_RULES) -> int:
    """Bytes per device of a tree that is sharded by the rules over a mesh of these sizes."""

    def cost(x, logical):
        return _share(x, spec_for(logical, x.shape, mesh_sizes, rules)[0], mesh_sizes)

    return sum(jax.tree.leaves(jax.tree.map(cost, abstract, axes)))


def sharded_bytes(abstract: Any, shardings: Any) -> int:
    """Bytes per device of a tree with these NamedShardings, on real or abstract meshes.

    With several meshes: the bytes on the device that holds most. Abstract meshes are assumed to share their devices.
    """

    def cost(x, sharding: NamedSharding):
        return sharding.mesh, _share(x, sharding.spec, dict(sharding.mesh.shape))

    leaves = jax.tree.leaves(abstract)
    structure: Any = jax.tree.structure(abstract)  # JAX gives it no type
    return most_on_a_device(map(cost, leaves, structure.flatten_up_to(shardings)))


def _share(x: Any, spec: Any, mesh_sizes: Mapping[str, int]) -> int:
    parts = math.prod(mesh_sizes[a] for mesh_axes in split_axes(spec, len(x.shape)) for a in mesh_axes)
    return math.prod(x.shape) * x.dtype.itemsize // parts


def _size(count: int) -> str:
    """Bytes in a unit that shows them: small models do not need "0.0 MiB"."""
    if count < 1024:
        return f"{count} bytes"
    return f"{count / 2**10:,.1f} KiB" if count < 2**20 else f"{count / 2**20:,.1f} MiB"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per device of a training state. Activations are not included: they depend on the model."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Parameters, gradients and optimizer state together."""
        return self.parameters + self.gradients + self.optimizer

    def __str__(self) -> str:
        parts = {"parameters": self.parameters, "gradients": self.gradients, "optimizer": self.optimizer, "total": self.total}
        return ", ".join(f"{name} {_size(value)}" for name, value in parts.items()) + " per device"


def estimate(axes: Any, abstract: Any, place: Placement, optimizer: Any = None) -> Memory:
    """Bytes per device of parameters, gradients and the state of an optax optimizer.

    Without an optimizer, gradients and optimizer state are 0. Nothing is allocated and no device is needed: `place` may use an
    `abstract_mesh` of any size.
    """
    shardings = place.tree(axes, abstract)
    own = sharded_bytes(abstract, shardings)
    if optimizer is None:
        return Memory(own, 0, 0)
    state = jax.eval_shape(optimizer.init, abstract)
    return Memory(own, own, sharded_bytes(state, optimizer_shardings(state, abstract, shardings)))


def mesh_key(mesh: AnyMesh) -> tuple:
    """Equal for equal meshes: the axis sizes, and the devices in order (None for an abstract mesh)."""
    return tuple(mesh.shape.items()), tuple(mesh.devices.flat) if isinstance(mesh, Mesh) else None


def bytes_by_mesh(sizes: Iterable[tuple[AnyMesh, int]]) -> list[tuple[AnyMesh, int]]:
    """(mesh, sum of its sizes) for every mesh, in order of first appearance."""
    sums: dict[AnyMesh, int] = {}
    for mesh, size in sizes:
        sums[mesh] = sums.get(mesh, 0) + size
    same: dict[tuple, AnyMesh] = {}  # meshes that differ only in their axis types count as one
    total: Counter[tuple] = Counter()
    for mesh, size in sums.items():
        same.setdefault(mesh_key(mesh), mesh)
        total[mesh_key(mesh)] += size
    return [(mesh, total[key]) for key, mesh in same.items()]


def most_on_a_device(sizes: Iterable[tuple[AnyMesh, int]]) -> int:
    """The bytes on the device that holds most, from (mesh, bytes on each of its devices) of every array.

    The devices of an abstract mesh are unknown: it is assumed to share a device with every other mesh.
    """
    devices: Counter[Any] = Counter()
    unknown = 0
    for mesh, size in bytes_by_mesh(sizes):
        if isinstance(mesh, Mesh):
            devices.update(dict.fromkeys(mesh.devices.flat, size))
        else:
            unknown += size
    return max(devices.values(), default=0) + unknown
