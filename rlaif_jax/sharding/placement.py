"""Placement: a mesh and sharding rules in one hashable value. Also the rows of a batch on several processes.

Each process passes in the rows for its own devices, and can read them back:

    positions = host_rows(place, batch_size)      # the positions of this process's rows in the global batch
    batch = global_batch({"x": rows[positions]}, place)
    mine = local_rows(batch["x"])                 # the same rows, on the host again
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from rlaif_jax.errors import UserError
from rlaif_jax.sharding.mesh import make_mesh
from rlaif_jax.sharding.move import check_integers
from rlaif_jax.sharding.rules import DEFAULT_RULES, RULE_SETS, Axes, Repair, Rules, rule_axes, spec_for
from rlaif_jax.sharding.trees import map_named


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh and its rules. Rules are stored as a tuple of items, so that a Placement can be a static jit argument.

    With an AbstractMesh, it gives specs, tables and memory estimates without real devices.
    """

    mesh: Mesh | AbstractMesh
    rule_items: tuple[tuple[str, tuple[str, ...]], ...] = tuple(DEFAULT_RULES.items())

    @classmethod
    def of(cls, mesh: Mesh | AbstractMesh, rules: str | Rules = "default") -> Placement:
        """Makes a Placement with a named rule set (see `RULE_SETS`) or with your own rules.

        A rule maps a logical axis to one mesh axis, a tuple of mesh axes, or None. Your own rules may only name axes of the mesh
        (else UserError); in the named rule sets, axes that the mesh lacks are ignored.
        """
        if isinstance(rules, str):
            if rules not in RULE_SETS:
                raise UserError(f"there is no rule set {rules!r}; known: {', '.join(RULE_SETS)}")
            return cls(mesh, tuple(RULE_SETS[rules].items()))
        table = {name: rule_axes(rule) for name, rule in dict(rules).items()}
        for name, axes in table.items():
            if missing := [axis for axis in axes if axis not in mesh.shape]:
                raise UserError(f"rule {name!r}: the mesh has no axis {missing[0]!r}; it has {', '.join(mesh.shape)}")
        return cls(mesh, tuple(table.items()))

    @property
    def rules(self) -> dict[str, tuple[str, ...]]:
        """Logical axis -> mesh axes."""
        return dict(self.rule_items)

    @property
    def sizes(self) -> dict[str, int]:
        """Mesh axis -> size."""
        return dict(self.mesh.shape)

    def without(self, *mesh_axes: str) -> Placement:
        """The same rules, but *parameters* are replicated over these mesh axes; for example, weights gathered over fsdp to sample.

        Rows ("batch") keep all their axes. A mesh axis used directly as a logical axis name is replicated as well. UserError for
        an axis that neither the mesh nor a rule has.
        """
        known = [*dict.fromkeys([*self.mesh.shape, *(a for _, axes in self.rule_items for a in axes)])]
        if missing := [axis for axis in mesh_axes if axis not in known]:
            raise UserError(f"without: there is no mesh axis {missing[0]!r}; there are {', '.join(known)}")
        kept = {k: v if k == "batch" else tuple(a for a in v if a not in mesh_axes) for k, v in self.rule_items}
        kept |= {axis: () for axis in mesh_axes}
        return dataclasses.replace(self, rule_items=tuple(kept.items()))

    def local(self) -> Placement:
        """The same rules on a mesh of only this process's devices, all on the first row axis: for work of one process."""
        sizes = dict.fromkeys(self.mesh.axis_names, 1) | {self._row_axes[0]: -1}
        return dataclasses.replace(self, mesh=make_mesh(sizes, jax.local_devices()))

    def array(self, axes: Axes, shape: tuple[int, ...]) -> NamedSharding:
        """Sharding of one array."""
        return NamedSharding(self.mesh, spec_for(axes, shape, self.sizes, self.rules)[0])

    def tree(self, axes: Any, abstract: Any) -> Any:
        """Shardings for a tree of arrays or ShapeDtypeStructs. `axes` is the tree of their logical axes."""

        def one(name, x, a):
            return NamedSharding(self.mesh, spec_for(a, np.shape(x), self.sizes, self.rules, name)[0])

        return map_named(one, abstract, axes)

    def repairs(self, axes: Any, abstract: Any) -> list[Repair]:
        """Every dimension that the rules would shard but that has to stay unsharded, and why."""
        found: list[Repair] = []

        def visit(name, x, a):
            found.extend(spec_for(a, np.shape(x), self.sizes, self.rules, name)[1])

        map_named(visit, abstract, axes)
        return found

    @property
    def replicated(self) -> NamedSharding:
        """The replicated sharding: every device holds the full array."""
        return NamedSharding(self.mesh, PartitionSpec())

    def rows(self, count: int) -> NamedSharding:
        """Sharding of arrays with `count` rows in the first dimension; replicated if the row shards do not divide `count`."""
        _ = self._row_axes
        return self.array(("batch",), (count,))

    @property
    def row_shards(self) -> int:
        """The number of shards of a batch's rows."""
        return math.prod(self.sizes.get(a, 1) for a in self._row_axes)

    @property
    def _row_axes(self) -> tuple[str, ...]:
        if "batch" not in self.rules:
            raise UserError('the rules have no entry for rows: add "batch" and the mesh axes that shard them')
        return self.rules["batch"]


def constrain(x: jax.Array, axes: Axes, place: Placement | None) -> jax.Array:
    """Shards an intermediate array inside jit by the rules; returns `x` unchanged if `place` is None.

    On a mesh with Auto axes (from `make_mesh`) it is a sharding constraint; with Explicit axes, a reshard.
    """
    if place is None:
        return x
    explicit = AxisType.Explicit in place.mesh.axis_types
    return (jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint)(x, place.array(axes, x.shape))


def sharded_init(init: Callable[..., Any], axes: Any, place: Placement, *args: Any) -> Any:
    """Runs init(*args) under jit, so that every result is created sharded and never exists in full on one device or host.

    `axes` is the tree of axes of the result, or a function that makes it from the result's abstract tree (`axes_of`, or
    `functools.partial(axes_by_pattern, patterns)`).

    The compiler also shards intermediate values where it can: random numbers and elementwise functions, yes; a QR
    decomposition (`orthogonal`) or a reshape may be replicated for a while.
    """
    _require_devices(place, "sharded_init")
    abstract = jax.eval_shape(init, *args)
    if not jax.tree.leaves(abstract):
        raise UserError("sharded_init: the function returns no arrays")
    found = axes(abstract) if callable(axes) else axes
    return jax.jit(init, out_shardings=place.tree(found, abstract))(*args)


def _require_devices(place: Placement, what: str) -> None:
    if isinstance(place.mesh, AbstractMesh):
        raise UserError(f"{what} needs real devices; this placement has an abstract mesh, for tables and estimates")


def host_rows(place: Placement, count: int) -> np.ndarray:
    """Positions (int64, ascending) of this process's rows in a batch of `count` rows.

    They may have gaps. Processes whose devices hold the same row shards get the same positions. `count` must be a multiple of
    the mesh's row shards: else UserError with several processes, and a warning with one, where every device gets all rows.
    """
    _require_devices(place, "host_rows")
    if jax.process_count() > 1 and count % place.row_shards:
        raise UserError(f"with several processes, a batch of {count} rows must be a multiple of the {place.row_shards} row shards")
    _warn_of_copies("host_rows", count, place)
    indices = place.rows(count).addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[index] for index in indices]))


def _warn_of_copies(what: str, count: int, place: Placement) -> None:
    if count % place.row_shards:
        text = f"{what}: {count} rows are no multiple of the {place.row_shards} row shards, so every device gets all of them"
        warnings.warn(text, stacklevel=3)


def global_batch(batch: Any, place: Placement) -> Any:
    """Makes global arrays, sharded over the mesh's row axes, from this process's NumPy rows (see `host_rows`).

    With one process, rows that the row shards do not divide are copied to every device, with a warning.
    """

    _require_devices(place, "global_batch")

    def put(name, x):
        x = np.asarray(x)
        if x.ndim == 0:
            raise UserError(f"global_batch: {name or 'the array'} is a scalar; its first dimension must be rows")
        check_integers(x, name)
        if jax.process_count() == 1:
            _warn_of_copies(name or "global_batch", x.shape[0], place)
            return jax.make_array_from_process_local_data(place.rows(x.shape[0]), x)
        own = len(host_rows(place, place.row_shards))
        if x.shape[0] % own:
            raise UserError(f"{name or 'a batch'}: this process passes {x.shape[0]} rows, not a multiple of its {own} row shards")
        count = x.shape[0] // own * place.row_shards
        rows = host_rows(place, count)

        def block(index):
            return x[np.searchsorted(rows, np.arange(count)[index[0]])]

        return jax.make_array_from_callback((count, *x.shape[1:]), place.rows(count), block)

    return map_named(put, batch)


def local_rows(x: jax.Array) -> np.ndarray:
    """This process's rows of a global array, in order, as NumPy: the inverse of `global_batch` for one array."""
    if x.ndim == 0:
        raise UserError("local_rows: a scalar has no rows; read it with gather")
    spans = [np.arange(x.shape[0])[shard.index[0]] for shard in x.addressable_shards]
    rows = np.unique(np.concatenate(spans))
    out, filled = np.empty((len(rows), *x.shape[1:]), x.dtype), np.zeros((len(rows), *x.shape[1:]), bool)
    for shard, span in zip(x.addressable_shards, spans, strict=True):
        where = (slice(*np.searchsorted(rows, [span[0], span[-1] + 1])) if len(span) else slice(0), *shard.index[1:])
        out[where], filled[where] = np.asarray(shard.data), True
    if not filled.all():
        raise UserError("this process holds only a part of each row: gather the array, or shard only its first dimension")
    return out


def abstract_like(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs of a tree (of arrays or structs) with these shardings, for restoring a checkpoint."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
