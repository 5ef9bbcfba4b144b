"""Trees that lie on more than one mesh (a judge beside the policy): which meshes, and what each device holds in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from jax.sharding import AbstractMesh, Mesh

AnyMesh = Mesh | AbstractMesh


def mesh_key(mesh: AnyMesh) -> tuple:
    """What tells meshes apart: the sizes of the axes, and the devices in their order (None where there are none)."""
    return tuple(mesh.shape.items()), tuple(mesh.devices.flat) if isinstance(mesh, Mesh) else None


def bytes_by_mesh(sizes: Iterable[tuple[AnyMesh, int]]) -> list[tuple[AnyMesh, int]]:
    """(mesh, sum of its sizes) of every mesh, in the order in which they first appear."""
    sums: dict[AnyMesh, int] = {}
    for mesh, size in sizes:
        sums[mesh] = sums.get(mesh, 0) + size
    same: dict[tuple, AnyMesh] = {}  # meshes may differ in what does not count here, as the types of their axes
    total: Counter[tuple] = Counter()
    for mesh, size in sums.items():
        same.setdefault(mesh_key(mesh), mesh)
        total[mesh_key(mesh)] += size
    return [(mesh, total[key]) for key, mesh in same.items()]


def most_on_a_device(sizes: Iterable[tuple[AnyMesh, int]]) -> int:
    """The largest sum of bytes on one device, from (mesh, bytes on each of its devices) of every array.

    Which devices an abstract mesh will have is not known: it counts as if it shared a device with every other mesh.
    """
    devices: Counter[Any] = Counter()
    unknown = 0
    for mesh, size in bytes_by_mesh(sizes):
        if isinstance(mesh, Mesh):
            devices.update(dict.fromkeys(mesh.devices.flat, size))
        else:
            unknown += size
    return max(devices.values(), default=0) + unknown
