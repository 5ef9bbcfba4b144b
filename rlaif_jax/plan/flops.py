"""Counts floating-point operations of a traced program, loops included. XLA's own cost analysis counts a loop body once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def count_flops(jaxpr: Any, loop_trips: int = 1) -> float:
    """Operations of all matrix products in a (closed) jaxpr, over all devices, recomputation included.

    The body of a scan counts once per iteration, the body of a while loop `loop_trips` times (its end depends on data), and
    of the branches of a cond the largest counts. Only matrix products are counted: other operations are memory-bound.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_flops(eqn, loop_trips) for eqn in jaxpr.eqns)


def _flops(eqn: Any, loop_trips: int) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        return _dot(eqn)
    if name == "cond":
        return max(count_flops(branch, loop_trips) for branch in params["branches"])
    inner = sum(count_flops(sub, loop_trips) for sub in _sub_jaxprs(params))
    if name == "scan":
        return inner * params["length"]
    return inner * loop_trips if name == "while" else inner


def _dot(eqn: Any) -> float:
    left, right = (v.aval.shape for v in eqn.invars)
    (contract, _), (batch, _) = eqn.params["dimension_numbers"]
    free = math.prod(size for i, size in enumerate(left) if i not in contract)
    other = math.prod(right) // math.prod(left[i] for i in (*contract, *batch))
    return 2.0 * free * other * math.prod(left[i] for i in contract)


def _sub_jaxprs(params: dict[str, Any]) -> list[Any]:
    """All jaxprs in an equation's parameters: bodies of jit, remat, scan, custom derivatives."""
    values = []
    for value in params.values():
        values += value if isinstance(value, (tuple, list)) else [value]
    return [v for v in values if not isinstance(v, np.ndarray) and hasattr(getattr(v, "jaxpr", v), "eqns")]
