"""Arrays that wait in the host's memory: the same mesh and specs with another memory kind, and nothing else changes.

    require_host_memory(place.mesh, "rl.offload_optimizer")
    waiting = jax.device_put(opt_state, on_host(shardings))
    opt_state = jax.device_put(waiting, on_device(on_host(shardings)))      # before a program reads it
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh

from rlaif_jax.errors import UserError

HOST = "pinned_host"


def on_host(shardings: Any) -> Any:
    """The tree of shardings in page-locked memory of the host that each device belongs to."""
    return jax.tree.map(lambda s: s.with_memory_kind(HOST), shardings)


def on_device(shardings: Any) -> Any:
    """The tree of shardings with those on the host in the devices' own memory; others stay as they are."""

    def one(s):
        return s.with_memory_kind(s.mesh.devices.flat[0].default_memory().kind) if s.memory_kind == HOST else s

    return jax.tree.map(one, shardings)


def require_host_memory(mesh: Mesh, setting: str) -> None:
    """UserError that names the setting if the mesh's devices know no such memory of their host."""
    device = mesh.devices.flat[0]
    kinds = sorted(memory.kind for memory in device.addressable_memories())
    if HOST not in kinds:
        raise UserError(
            f"{setting} needs devices with {HOST} memory; those of this {device.platform} backend have {', '.join(kinds)}: "
            "leave it false"
        )
