"""What a tree costs in memory on one device of a mesh, without allocating it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding

from rlaif_jax.sharding.meshes import most_on_a_device
from rlaif_jax.sharding.optimizer import optimizer_shardings
from rlaif_jax.sharding.placement import Placement
from rlaif_jax.sharding.rules import DEFAULT_RULES, Rules, spec_for, split_axes


def bytes_per_device(axes: Any, abstract: Any, mesh_sizes: Mapping[str, int], rules: Rules = DEFAULT_RULES) -> int:
    """Bytes that one device holds of a tree placed by the rules on a mesh of these sizes."""

    def cost(x, logical):
        return _share(x, spec_for(logical, x.shape, mesh_sizes, rules)[0], mesh_sizes)

    return sum(jax.tree.leaves(jax.tree.map(cost, abstract, axes)))


def sharded_bytes(abstract: Any, shardings: Any) -> int:
    """Bytes that one device holds of a tree with these NamedShardings (on a mesh or an abstract one).

    On several meshes: the most that a device holds of them all, where abstract meshes count as if they shared their devices.
    """

    def cost(x, sharding: NamedSharding):
        return sharding.mesh, _share(x, sharding.spec, dict(sharding.mesh.shape))

    leaves = jax.tree.leaves(abstract)
    structure: Any = jax.tree.structure(abstract)  # JAX gives it no type
    return most_on_a_device(map(cost, leaves, structure.flatten_up_to(shardings)))


def _share(x: Any, spec: Any, mesh_sizes: Mapping[str, int]) -> int:
    parts = math.prod(mesh_sizes[a] for mesh_axes in split_axes(spec, len(x.shape)) for a in mesh_axes)
    return math.prod(x.shape) * x.dtype.itemsize // parts


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device that a training state takes; activations are the model's own and not in here."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All three."""
        return self.parameters + self.gradients + self.optimizer

    def __str__(self) -> str:
        parts = {"parameters": self.parameters, "gradients": self.gradients, "optimizer": self.optimizer, "total": self.total}
        return ", ".join(f"{name} {value / 2**20:,.1f} MiB" for name, value in parts.items()) + " per device"


def estimate(axes: Any, abstract: Any, place: Placement, optimizer: Any = None) -> Memory:
    """What parameters, gradients and an optax optimiser's state take on one device; None = no optimiser.

    Nothing is allocated and no device is needed: `place` may stand on an `abstract_mesh` of any size.
    """
    shardings = place.tree(axes, abstract)
    own = sharded_bytes(abstract, shardings)
    if optimizer is None:
        return Memory(own, 0, 0)
    state = jax.eval_shape(optimizer.init, abstract)
    return Memory(own, own, sharded_bytes(state, optimizer_shardings(state, abstract, shardings)))
