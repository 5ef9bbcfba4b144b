"""Shardings of arrays that are offloaded to host memory: same mesh and spec, other memory kind.

    require_host_memory(place.mesh, "rl.offload_optimizer")
    offloaded = jax.device_put(opt_state, on_host(shardings))
    opt_state = jax.device_put(offloaded, on_device(on_host(shardings)))      # before a program reads it
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh

from rlaif_jax.errors import UserError

HOST = "pinned_host"


def on_host(shardings: Any) -> Any:
    """The same shardings in pinned memory of each device's host."""
    return jax.tree.map(lambda s: s.with_memory_kind(HOST), shardings)


def on_device(shardings: Any) -> Any:
    """The same shardings, with those in host memory moved to device memory; the rest is unchanged."""

    def one(s):
        return s.with_memory_kind(s.mesh.devices.flat[0].default_memory().kind) if s.memory_kind == HOST else s

    return jax.tree.map(one, shardings)


def require_host_memory(mesh: Mesh, setting: str) -> None:
    """UserError that names `setting` if the mesh's devices have no pinned host memory."""
    device = mesh.devices.flat[0]
    kinds = sorted(memory.kind for memory in device.addressable_memories())
    if HOST not in kinds:
        raise UserError(
            f"{setting} needs devices with {HOST} memory; those of this {device.platform} backend have {', '.join(kinds)}: "
            "set it to false"
        )
