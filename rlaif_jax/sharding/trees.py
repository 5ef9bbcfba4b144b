"""Names of the leaves of any tree, and trees of logical axes from Flax annotations or regular expressions.

A "tree of axes" has the structure of the parameter tree, with a tuple of axis names instead of each array. Make it from
annotations (`axes_of`), from regular expressions (`axes_by_pattern`), or write it by hand.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec

from rlaif_jax.errors import UserError
from rlaif_jax.sharding.rules import Axes

Patterns = Sequence[tuple[str, tuple]]


def _joined(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_paths(tree: Any) -> list[tuple[tuple, Any]]:
    """(key path, leaf) of every array, in tree order. The key "value" of Flax boxes and variables is left out."""
    return list(_paths(tree, ()))


def _paths(tree: Any, above: tuple) -> Iterator[tuple[tuple, Any]]:
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_box):
        if not _is_box(node):
            yield above + path, node
            continue
        for key, inside in jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda x, box=node: x is not box):
            if not key:  # the box itself is a leaf
                yield above + path, inside
            else:
                yield from _paths(inside, above + path + (() if _joined(key) == "value" else key))


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """(name, leaf) of every array, in tree order. The name is the key path, for example "layers/attention/kernel"."""
    return [(_joined(path), leaf) for path, leaf in leaf_paths(tree)]


def map_named(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Like jax.tree.map, but calls function(name, leaf, *entries of the other trees); for names, see `named_leaves`."""
    structure: Any = jax.tree.structure(tree)  # JAX gives it no type
    columns = [structure.flatten_up_to(other) for other in others]
    entries = zip(named_leaves(tree), *columns, strict=True)
    return structure.unflatten([function(name, leaf, *found) for (name, leaf), *found in entries])


def _is_box(node: Any) -> bool:
    """Whether it is a Flax Linen box (such as `nn.Partitioned`) or an NNX variable. Checks attributes, to not import Flax."""
    return hasattr(node, "get_metadata") or (hasattr(node, "unbox") and hasattr(node, "names"))


def _annotation(box: Any) -> tuple | None:
    if hasattr(box, "names"):
        return tuple(box.names)
    metadata = box.get_metadata()
    for key in ("out_sharding", "sharding_names", "sharding"):  # the name changed between Flax versions
        if metadata.get(key) is not None:
            return tuple(metadata[key])
    return None


def axes_of(tree: Any) -> Any:
    """The tree of axes from Flax annotations. An array without an annotation gets (None, ...): not sharded.

    `tree` holds arrays or ShapeDtypeStructs: `jax.eval_shape(model.init, ...)` of Linen with `nn.with_partitioning` or
    `nn.with_logical_partitioning`, `nnx.state(nnx.eval_shape(...))`, or any plain tree. The result has the same structure.
    UserError unless an annotation has one name per dimension.
    """
    leaves = []
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_box):
        inside = jax.tree.leaves(node)
        names = _annotation(node) if _is_box(node) and len(inside) == 1 else None
        if names is not None and len(names) != np.ndim(inside[0]):
            raise UserError(f"{_joined(path)}: annotated {names}, but its shape is {np.shape(inside[0])}")
        leaves += [(None,) * np.ndim(x) if names is None else names for x in inside]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


class Coverage(NamedTuple):
    """The pattern that each leaf uses, the leaves without a pattern, and the patterns that no leaf uses."""

    matched: dict[str, str]
    unmatched: list[str]
    unused: list[str]

    def __str__(self) -> str:
        lines = [f"{name}: {pattern}" for name, pattern in self.matched.items()]
        lines += [f"{name}: NO PATTERN" for name in self.unmatched]
        return "\n".join(lines + [f"pattern {p!r} is used by no parameter" for p in self.unused])


def coverage(patterns: Patterns, tree: Any) -> Coverage:
    """Matches every leaf's name against the patterns in order (`re.search`; the first match wins).

    UserError for an invalid regular expression, and if two leaves have the same name.
    """
    expressions = {pattern: _compiled(pattern) for pattern, _ in patterns}
    names = [name for name, _ in named_leaves(tree)]
    refuse_shared(names, names)
    matched, unmatched = {}, []
    for name in names:
        found = next((p for p, expression in expressions.items() if expression.search(name)), None)
        if found is None:
            unmatched.append(name)
        else:
            matched[name] = found
    used = set(matched.values())
    return Coverage(matched, unmatched, [p for p, _ in patterns if p not in used])


def _compiled(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise UserError(f"pattern {pattern!r} is not a valid regular expression: {error}") from error


def refuse_shared(wanted: Sequence[str], names: Sequence[str]) -> None:
    """UserError if a name in `wanted` is ambiguous: more than one entry of `names` equals it."""
    counts = Counter(names)
    shared = sorted({name for name in wanted if counts[name] > 1})
    if shared:
        raise UserError(f"more than one array is called {', '.join(shared)} (do keys contain a /?); rename keys of the tree")


def axes_by_pattern(patterns: Patterns, tree: Any) -> Any:
    """The tree of axes from ordered pairs (regular expression, axes); the first expression found in a leaf's name wins.

    `axes` has one entry per dimension. A leading ... stands for any number of unsharded dimensions, and () for an unsharded
    array. Python numbers have no dimensions. UserError for axes of another form or length, and for leaves without a pattern
    (it lists all of them). To find patterns that match nothing, print `coverage`.
    """
    table: dict[str, tuple] = {}
    for pattern, axes in patterns:
        table.setdefault(pattern, _checked(axes, pattern))  # of two equal patterns, the first wins
    found = coverage(patterns, tree)
    if found.unmatched:
        raise UserError(
            f"no pattern matches {', '.join(found.unmatched)}; add one, or end with ('.*', ()) to leave them unsharded"
        )

    def fitted(name, leaf):
        pattern = found.matched[name]
        return _fitted(table[pattern], np.shape(leaf), name, pattern)

    return jax.tree.unflatten(jax.tree.structure(tree), [fitted(name, leaf) for name, leaf in named_leaves(tree)])


def _checked(axes: Any, pattern: str) -> tuple:
    """The axes of a pattern as a tuple; UserError unless every entry is a name, a tuple of names or None."""
    parts = tuple(axes) if isinstance(axes, tuple | list | PartitionSpec) else None
    rest = parts[1:] if parts and parts[0] is Ellipsis else parts
    if parts is None or rest is None or not all(p is None or isinstance(p, str | tuple) for p in rest):
        raise UserError(
            f"pattern {pattern!r} gives the axes {axes!r}; expected a tuple with an entry for each dimension: a name, a tuple of "
            "names or None, as in ('embed', None). (..., 'embed') leaves leading dimensions unsharded, () the full array"
        )
    return parts


def _fitted(axes: tuple, shape: tuple[int, ...], name: str, pattern: str) -> Axes:
    if axes == ():
        return (None,) * len(shape)
    if axes[0] is Ellipsis and len(axes) - 1 <= len(shape):
        return (None,) * (len(shape) - len(axes) + 1) + axes[1:]
    if axes[0] is Ellipsis or len(axes) != len(shape):
        raise UserError(
            f"pattern {pattern!r} gives {axes} to {name}, whose shape is {tuple(shape)}; give it one entry per dimension, or "
            "put a separate pattern for this array first"
        )
    return axes
