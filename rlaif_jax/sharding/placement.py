"""Where arrays live: a mesh and the rules, as one hashable value that functions take as an argument; and rows of batches.

Each process feeds the rows that its devices hold, and reads them back:

    positions = host_rows(place, batch_size)      # which rows of the global batch are this process's share
    batch = global_batch({"x": rows[positions]}, place)
    mine = local_rows(batch["x"])                 # the same rows, on the host again
"""

from __future__ import annotations

import dataclasses
import math
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
    """A mesh with its rules. `rules` is a tuple of items, so that a Placement can be a static jit argument.

    With an AbstractMesh it gives specs, tables and estimates for devices that are not there.
    """

    mesh: Mesh | AbstractMesh
    rule_items: tuple[tuple[str, tuple[str, ...]], ...] = tuple(DEFAULT_RULES.items())

    @classmethod
    def of(cls, mesh: Mesh | AbstractMesh, rules: str | Rules = "default") -> Placement:
        """With a named rule set (see `RULE_SETS`) or rules of your own: logical axis -> mesh axes (a name, several, or None).

        Named rule sets may speak of axes that the mesh does not have; rules of your own that do are a UserError.
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
        """The same placement of *parameters* with some mesh axes unused, e.g. weights gathered over fsdp to sample.

        Rows ("batch") keep all their axes. The name of such an axis, where it stands for itself, means whole, too.
        """
        kept = {k: v if k == "batch" else tuple(a for a in v if a not in mesh_axes) for k, v in self.rule_items}
        kept |= {axis: () for axis in mesh_axes}
        return dataclasses.replace(self, rule_items=tuple(kept.items()))

    def local(self) -> Placement:
        """The same rules over this process's own devices, all on the first axis of the rows: for work that it does alone."""
        sizes = dict.fromkeys(self.mesh.axis_names, 1) | {self._row_axes[0]: -1}
        return dataclasses.replace(self, mesh=make_mesh(sizes, jax.local_devices()))

    def array(self, axes: Axes, shape: tuple[int, ...]) -> NamedSharding:
        """Sharding of one array."""
        return NamedSharding(self.mesh, spec_for(axes, shape, self.sizes, self.rules)[0])

    def tree(self, axes: Any, abstract: Any) -> Any:
        """Shardings for a tree of arrays (or ShapeDtypeStructs) from the tree of their logical axes."""

        def one(name, x, a):
            return NamedSharding(self.mesh, spec_for(a, np.shape(x), self.sizes, self.rules, name)[0])

        return map_named(one, abstract, axes)

    def repairs(self, axes: Any, abstract: Any) -> list[Repair]:
        """Every parameter dimension that stays whole although the rules would split it."""
        found: list[Repair] = []

        def visit(name, x, a):
            found.extend(spec_for(a, np.shape(x), self.sizes, self.rules, name)[1])

        map_named(visit, abstract, axes)
        return found

    @property
    def replicated(self) -> NamedSharding:
        """Whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def rows(self, count: int) -> NamedSharding:
        """Arrays whose first axis is that many rows; whole where the count does not divide."""
        _ = self._row_axes
        return self.array(("batch",), (count,))

    @property
    def row_shards(self) -> int:
        """Into how many parts a batch is split."""
        return math.prod(self.sizes.get(a, 1) for a in self._row_axes)

    @property
    def _row_axes(self) -> tuple[str, ...]:
        if "batch" not in self.rules:
            raise UserError('the rules say nothing of rows: add "batch" and the mesh axes that split them')
        return self.rules["batch"]


def constrain(x: jax.Array, axes: Axes, place: Placement | None) -> jax.Array:
    """Keeps an intermediate array as the rules say; without a placement, nothing.

    Asks the compiler to, on a mesh with Auto axes (as `make_mesh` gives); on one with Explicit axes it is a reshard.
    """
    if place is None:
        return x
    explicit = AxisType.Explicit in place.mesh.axis_types
    return (jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint)(x, place.array(axes, x.shape))


def sharded_init(init: Callable[..., Any], axes: Any, place: Placement, *args: Any) -> Any:
    """init(*args) with every array made where it lies: no array of the result is whole on one device or on a host.

    What `init` needs on its way is split as far as the compiler can: random numbers and elementwise functions are, a QR
    decomposition (`orthogonal`) or a reshape may be whole on every device for a while.

    `axes` is the tree of axes of what `init` returns, or a function of its abstract tree that gives it
    (`axes_of`, or `functools.partial(axes_by_pattern, patterns)`).
    """
    _require_devices(place, "sharded_init")
    abstract = jax.eval_shape(init, *args)
    if not jax.tree.leaves(abstract):
        raise UserError("sharded_init: the function returns no array")
    found = axes(abstract) if callable(axes) else axes
    return jax.jit(init, out_shardings=place.tree(found, abstract))(*args)


def _require_devices(place: Placement, what: str) -> None:
    if isinstance(place.mesh, AbstractMesh):
        raise UserError(f"{what} needs real devices; this placement has an abstract mesh, for tables and estimates")


def host_rows(place: Placement, count: int) -> np.ndarray:
    """Positions (int64, ascending) of this process's rows in a batch of `count` rows.

    They need not be contiguous, and several processes hold the same rows where the mesh splits no rows between them.
    UserError if, with several processes, the count does not divide by the mesh's row shards.
    """
    _require_devices(place, "host_rows")
    if jax.process_count() > 1 and count % place.row_shards:
        raise UserError(f"with several processes, a batch of {count} rows must be a multiple of the {place.row_shards} row shards")
    indices = place.rows(count).addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[index] for index in indices]))


def global_batch(batch: Any, place: Placement) -> Any:
    """Host-local NumPy rows (this process's share, see `host_rows`) -> global arrays split over the mesh's row axes."""

    _require_devices(place, "global_batch")

    def put(name, x):
        x = np.asarray(x)
        if x.ndim == 0:
            raise UserError(f"global_batch: {name or 'the array'} is a scalar; expected rows in the first dimension")
        check_integers(x, name)
        if jax.process_count() == 1:
            return jax.make_array_from_process_local_data(place.rows(x.shape[0]), x)
        own = len(host_rows(place, place.row_shards))
        if x.shape[0] % own:
            raise UserError(f"{name or 'a batch'}: this process holds {own} row shards, but its share is {x.shape[0]} rows")
        count = x.shape[0] // own * place.row_shards
        rows = host_rows(place, count)

        def block(index):
            return x[np.searchsorted(rows, np.arange(count)[index[0]])]

        return jax.make_array_from_callback((count, *x.shape[1:]), place.rows(count), block)

    return map_named(put, batch)


def local_rows(x: jax.Array) -> np.ndarray:
    """This process's rows of a global array, in order: the inverse of `global_batch` for one array."""
    if x.ndim == 0:
        raise UserError("local_rows: a scalar has no rows; read it with gather")
    spans = [np.arange(x.shape[0])[shard.index[0]] for shard in x.addressable_shards]
    rows = np.unique(np.concatenate(spans))
    out, filled = np.empty((len(rows), *x.shape[1:]), x.dtype), np.zeros((len(rows), *x.shape[1:]), bool)
    for shard, span in zip(x.addressable_shards, spans, strict=True):
        where = (slice(*np.searchsorted(rows, [span[0], span[-1] + 1])) if len(span) else slice(0), *shard.index[1:])
        out[where], filled[where] = np.asarray(shard.data), True
    if not filled.all():
        raise UserError("this process holds only parts of its rows: gather the array, or split its rows alone")
    return out


def abstract_like(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs of a tree (of arrays or structs) with these shardings, as restore targets."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
