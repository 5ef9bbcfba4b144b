"""LoRA (arXiv 2106.09685) as functions on parameter trees. In the model, only `ops.linear` handles it.

    adapter = init(cfg, lora, key)                 # {"layers": {"q": {"a": (L, D, R), "b": (L, R, F)}, ...}}
    hidden = transformer.forward(apply_lora(base, adapter, lora), cfg, ...)      # differentiable in base and adapter
    plain = merge(base, adapter, lora)             # full weights, for sampling and export

The base without the adapter is the KL reference, so policy and reference share one base in memory.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from rlaif_jax.errors import UserError
from rlaif_jax.models import transformer
from rlaif_jax.models.matrices import LoraMatrix, dense
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.ranges import Positive, Range, check_fields

_ALL = {"layers/(q|k|v|o|gate|up|down)": 16}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which matrices get a low-rank update, and of which rank.

    Attributes:
      targets: regular expression -> rank. A pattern must match the full name of a parameter, such as "layers/q"; the first match
        counts. Rank 0 or no match: no update.
      alpha: scales the update by alpha / rank. There is no dropout.
    """

    targets: dict[str, Annotated[int, Range(0, 2**16)]] = dataclasses.field(default_factory=lambda: dict(_ALL))
    alpha: Positive = 32.0

    def __post_init__(self):
        check_fields(self)
        for pattern in self.targets:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"lora.targets: {pattern!r} is not a regular expression: {error}") from error


def ranks(cfg: ModelConfig, lora: LoraConfig) -> dict[str, int]:
    """Matrix of a block -> rank, for every matrix with an update.

    UserError if no matrix has one, or a pattern matches no matrix (likely a typo).
    """
    found = {}
    matrices = [f"layers/{n}" for n, (s, _, _) in transformer.layer_table(cfg).items() if len(s) == 2]
    for pattern in lora.targets:
        if not any(re.fullmatch(pattern, name) for name in matrices):
            raise UserError(f"lora.targets: {pattern!r} matches no matrix; the matrices are {', '.join(matrices)}")
    for name, (shape, _, _) in transformer.layer_table(cfg).items():
        rank = next((r for p, r in lora.targets.items() if re.fullmatch(p, f"layers/{name}")), 0)
        if rank and len(shape) == 2:
            found[name] = rank
    if not found:
        raise UserError(f"lora.targets gives no matrix a rank; the matrices are {', '.join(matrices)}")
    return found


def init(cfg: ModelConfig, lora: LoraConfig, key: jax.Array) -> dict:
    """A fresh adapter in float32: `a` uniform in +-1/sqrt(D), `b` zero, so the update starts at zero (as in PEFT).

    UserError for a rank that exceeds a side of its matrix: only a sum of adapters (`joined`) may have such a rank.
    """
    table, adapter = transformer.layer_table(cfg), {}
    for number, (name, rank) in enumerate(ranks(cfg, lora).items()):
        inputs, outputs = table[name][0]
        if rank > min(inputs, outputs):
            raise UserError(f"lora.targets: rank {rank} is too large for layers/{name} of shape {(inputs, outputs)}")
        bound = 1.0 / math.sqrt(inputs)
        shape = (cfg.layers, inputs, rank)
        a = jax.random.uniform(jax.random.fold_in(key, number), shape, jnp.float32, -bound, bound)
        adapter[name] = {"a": a, "b": jnp.zeros((cfg.layers, rank, outputs), jnp.float32)}
    return {"layers": adapter}


def logical_axes(cfg: ModelConfig, lora: LoraConfig) -> dict:
    """Logical axis names, as a tree like that of `init`: `a` is sharded like the matrix's input axis, `b` like its output axis.

    The rank axis is replicated.
    """
    table = transformer.layer_table(cfg)
    sides = {name: table[name][1] for name in ranks(cfg, lora)}
    return {"layers": {n: {"a": ("layers", i, None), "b": ("layers", None, o)} for n, (i, o) in sides.items()}}


def apply_lora(base: Any, trained: Any, lora: LoraConfig) -> Any:
    """The base's tree with a `LoraMatrix` in place of every matrix that has an update.

    Both trees may be nested in the same dicts. Entries that only `trained` has (a scalar head) are taken from there.
    """
    if not isinstance(trained, dict):
        return trained
    if trained.keys() == {"a", "b"}:
        return LoraMatrix(base, trained["a"], trained["b"], lora.alpha / trained["a"].shape[-1])
    found = {name: apply_lora(base[name], node, lora) if name in base else node for name, node in trained.items()}
    return base | found


def merge(base: Any, trained: Any, lora: LoraConfig) -> Any:
    """The base's tree with every update added to its matrix. Under jit, the shardings are those of the base."""
    return dense(apply_lora(base, trained, lora))


def joined(adapters: Sequence[Any]) -> Any:
    """One adapter whose update is the sum of the updates of `adapters`: their ranks are concatenated.

    With adapters of one `LoraConfig`, every matrix has n times its rank, and alpha must be n times as large too.
    """
    layers = [adapter["layers"] for adapter in adapters]
    return {"layers": {
        name: {"a": jnp.concatenate([part[name]["a"] for part in layers], axis=2),
               "b": jnp.concatenate([part[name]["b"] for part in layers], axis=1)}
        for name in layers[0]
    }}  # fmt: skip
