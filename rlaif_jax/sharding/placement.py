"""Where arrays live: a mesh and the rules, as one hashable value that functions take as an argument."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlaif_jax.sharding.rules import DEFAULT_RULES, Repair, Rules, spec_for


def _is_axes(node: Any) -> bool:
    return isinstance(node, tuple) and all(a is None or isinstance(a, str) for a in node)


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh with its rules. `rules` is a tuple of items, so that a Placement can be a static jit argument."""

    mesh: Mesh
    rule_items: tuple[tuple[str, tuple[str, ...]], ...] = tuple(DEFAULT_RULES.items())

    @property
    def rules(self) -> Rules:
        """Logical axis -> mesh axes."""
        return dict(self.rule_items)

    def without(self, *mesh_axes: str) -> Placement:
        """The same placement of *parameters* with some mesh axes unused, e.g. weights gathered over fsdp to sample.

        Rows ("batch") keep all their axes.
        """
        kept = {k: v if k == "batch" else tuple(a for a in v if a not in mesh_axes) for k, v in self.rule_items}
        return dataclasses.replace(self, rule_items=tuple(kept.items()))

    def array(self, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
        """Sharding of one array."""
        return NamedSharding(self.mesh, spec_for(axes, shape, dict(self.mesh.shape), self.rules)[0])

    def tree(self, axes: Any, abstract: Any) -> Any:
        """Shardings for a tree of arrays (or ShapeDtypeStructs) from the tree of their logical axes."""
        return jax.tree.map(lambda a, x: self.array(a, x.shape), axes, abstract, is_leaf=_is_axes)

    def repairs(self, axes: Any, abstract: Any) -> list[Repair]:
        """Every parameter dimension that stays whole because it does not divide."""
        found: list[Repair] = []
        sizes = dict(self.mesh.shape)

        def visit(path, a, x):
            found.extend(spec_for(a, x.shape, sizes, self.rules, jax.tree_util.keystr(path))[1])

        jax.tree_util.tree_map_with_path(visit, axes, abstract, is_leaf=_is_axes)
        return found

    @property
    def replicated(self) -> NamedSharding:
        """Whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def rows(self, count: int) -> NamedSharding:
        """Arrays whose first axis is that many rows; whole where the count does not divide."""
        return self.array(("batch",), (count,))

    @property
    def row_shards(self) -> int:
        """Into how many parts a batch is split."""
        return int(np.prod([self.mesh.shape[a] for a in self.rules["batch"]]))


def constrain(x: jax.Array, axes: tuple[str | None, ...], place: Placement | None) -> jax.Array:
    """Asks the compiler to keep an intermediate array as the rules say; without a placement, nothing."""
    return x if place is None else jax.lax.with_sharding_constraint(x, place.array(axes, x.shape))


def global_batch(batch: Any, place: Placement) -> Any:
    """Host-local NumPy rows (this process's share) -> global arrays split over the mesh's row axes."""

    def put(x):
        x = np.asarray(x)
        return jax.make_array_from_process_local_data(place.rows(x.shape[0] * jax.process_count()), x)

    return jax.tree.map(put, batch)
