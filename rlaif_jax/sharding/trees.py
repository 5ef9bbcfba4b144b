"""Foreign trees: the name of every leaf, and the axes that Flax Linen and NNX wrote beside their parameters.

A "tree of axes" has the structure of the tree that it describes, with a tuple of axis names in place of each array. It
comes from annotations (`axes_of`), from regular expressions (`axes_by_pattern`), or is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from rlaif_jax.errors import UserError
from rlaif_jax.sharding.rules import Axes

Patterns = Sequence[tuple[str, tuple]]


def leaf_name(path: tuple) -> str:
    """A leaf's key path as "layers/attention/kernel"; the "value" inside a Flax box or variable is left out."""
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """(name, leaf) of every array of a tree, in the tree's order."""
    return [(leaf_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _is_box(node: Any) -> bool:
    """A Flax Linen box (`nn.Partitioned` and its like) or an NNX variable, by what they can do: Flax is not imported."""
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
    """The tree of axes that its annotations give; what has none is whole, (None, ...).

    `tree` holds arrays or ShapeDtypeStructs: `jax.eval_shape(model.init, ...)` of Linen with `nn.with_partitioning` or
    `nn.with_logical_partitioning`, `nnx.state(nnx.eval_shape(...))`, or any plain tree. The result has its structure.
    UserError where an annotation has not one name per dimension.
    """
    leaves = []
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_box):
        inside = jax.tree.leaves(node)
        names = _annotation(node) if _is_box(node) and len(inside) == 1 else None
        if names is not None and len(names) != len(inside[0].shape):
            raise UserError(f"{leaf_name(path)}: annotated {names}, but its shape is {tuple(inside[0].shape)}")
        leaves += [(None,) * len(x.shape) if names is None else names for x in inside]
    return jax.tree.structure(tree).unflatten(leaves)


class Coverage(NamedTuple):
    """Which pattern each leaf got, the leaves that none matched, and the patterns that matched nothing first."""

    matched: dict[str, str]
    unmatched: list[str]
    unused: list[str]

    def __str__(self) -> str:
        lines = [f"{name}: {pattern}" for name, pattern in self.matched.items()]
        lines += [f"{name}: NO PATTERN" for name in self.unmatched]
        return "\n".join(lines + [f"pattern {p!r} is first for no parameter" for p in self.unused])


def coverage(patterns: Patterns, tree: Any) -> Coverage:
    """Matches every leaf's name against the ordered patterns (`re.search`, the first match wins)."""
    matched, unmatched = {}, []
    for name, _ in named_leaves(tree):
        found = next((p for p, _ in patterns if re.search(p, name)), None)
        if found is None:
            unmatched.append(name)
        else:
            matched[name] = found
    used = set(matched.values())
    return Coverage(matched, unmatched, [p for p, _ in patterns if p not in used])


def axes_by_pattern(patterns: Patterns, tree: Any) -> Any:
    """The tree of axes from ordered (regular expression, axes); the first that is found in a leaf's name wins.

    Axes are one entry per dimension; a leading ... stands for as many whole dimensions as are needed, () for whole.
    UserError that lists every leaf without a pattern; `coverage` also lists patterns that match nothing.
    """
    found = coverage(patterns, tree)
    if found.unmatched:
        raise UserError(
            f"no pattern matches {', '.join(found.unmatched)}; add one for them, or ('.*', ()) as the last to keep them whole"
        )
    table = dict(reversed(list(patterns)))  # of two equal patterns the first counts

    def axes(path, leaf):
        name = leaf_name(path)
        return _fitted(table[found.matched[name]], leaf.shape, name, found.matched[name])

    return jax.tree_util.tree_map_with_path(axes, tree)


def _fitted(axes: tuple, shape: tuple[int, ...], name: str, pattern: str) -> Axes:
    if axes == ():
        return (None,) * len(shape)
    if axes[0] is Ellipsis and len(axes) - 1 <= len(shape):
        return (None,) * (len(shape) - len(axes) + 1) + tuple(axes[1:])
    if axes[0] is Ellipsis or len(axes) != len(shape):
        raise UserError(f"pattern {pattern!r} gives {axes} to {name}, whose shape is {tuple(shape)}")
    return tuple(axes)
