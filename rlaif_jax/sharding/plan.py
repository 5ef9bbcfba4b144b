"""What a tree costs in memory on one device of a mesh, without allocating it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax

from rlaif_jax.sharding.placement import _is_axes
from rlaif_jax.sharding.rules import DEFAULT_RULES, Rules, spec_for


def bytes_per_device(axes: Any, abstract: Any, mesh_sizes: Mapping[str, int], rules: Rules = DEFAULT_RULES) -> int:
    """Bytes that one device holds of a tree placed by the rules on a mesh of these sizes."""

    def cost(logical, x):
        spec, _ = spec_for(logical, x.shape, mesh_sizes, rules)
        used = [a for part in spec if part for a in ((part,) if isinstance(part, str) else part)]
        return math.prod(x.shape) * x.dtype.itemsize // math.prod(mesh_sizes[a] for a in used)

    return sum(jax.tree.leaves(jax.tree.map(cost, axes, abstract, is_leaf=_is_axes)))
