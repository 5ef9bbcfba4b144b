"""The device mesh: data and fsdp split rows, fsdp also splits parameters, tensor splits heads and ffn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from rlaif_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "context")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; at most one may be -1, "all devices that are left". context is reserved (keep 1)."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1

    def sizes(self, devices: int) -> tuple[int, ...]:
        """Axis sizes for that many devices; a mesh that does not use them all is refused."""
        sizes = [getattr(self, axis) for axis in AXES]
        if any(s < 1 and s != -1 for s in sizes) or sizes.count(-1) > 1:
            raise UserError(f"mesh {dict(zip(AXES, sizes, strict=True))}: sizes are >= 1, and at most one is -1")
        if self.context != 1:
            raise UserError("mesh.context is reserved and must be 1: sequences are not split yet")
        fixed = math.prod(s for s in sizes if s != -1)
        if -1 in sizes:
            sizes[sizes.index(-1)] = max(devices // fixed, 1)
        if math.prod(sizes) != devices:
            raise UserError(f"mesh {dict(zip(AXES, sizes, strict=True))} needs {math.prod(sizes)} devices, but there are {devices}")
        return tuple(sizes)


def make_mesh(cfg: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all). Axes are Auto: the compiler places what the rules do not name."""
    devices = jax.devices() if devices is None else devices
    sizes = cfg.sizes(len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
