"""Loads the weights of a Hugging Face folder onto the mesh, and writes them back, tensor by tensor.

Hugging Face has one tensor per layer, output axis first. We stack the layers (L) and put the input axis first:

    model.layers.{0 .. L-1}.self_attn.q_proj.weight (N * H, D)   <->   params["layers"]["q"] (L, D, N * H)
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from rlaif_jax import state_files
from rlaif_jax.errors import UserError
from rlaif_jax.models import transformer
from rlaif_jax.models.hf_files import INDEX, SINGLE, Checkpoint, listed
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.models.quant import kept_in_8_bits
from rlaif_jax.sharding.placement import Placement

_TOP = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "lm_head": "lm_head.weight"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm.weight", "mlp_norm": "post_attention_layernorm.weight",
    **{n: f"self_attn.{n}_proj.weight" for n in "qkvo"}, **{f"{n}_bias": f"self_attn.{n}_proj.bias" for n in "qkv"},
    **{f"{n}_norm": f"self_attn.{n}_norm.weight" for n in "qk"}, **{n: f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")},
}  # fmt: skip
_DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # old files contain it; we compute it from the config
READABLE = {"F32", "BF16", "F16"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our parameters and its tensors in the checkpoint.

    Attributes:
      path: of the parameter in our tree.
      names: of the tensors; one per layer if `stacked`.
      shape, axes: shape and logical axes of one tensor in the checkpoint.
      stacked: our parameter stacks one tensor per layer.
      transposed: the two axes are swapped in ours.
      row: the checkpoint's tensor has an extra leading axis of 1.
    """

    path: tuple[str, ...]
    names: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    stacked: bool = False
    transposed: bool = False
    row: bool = False

    def ours(self, x: jax.Array) -> jax.Array:
        """Converts one tensor of the checkpoint to our layout."""
        return x.T if self.transposed else x[0] if self.row else x

    def theirs(self, x: jax.Array) -> jax.Array:
        """The inverse of `ours`."""
        return x.T if self.transposed else x[None] if self.row else x


def name_table(cfg: ModelConfig, scalar: bool) -> list[Entry]:
    """Every parameter of a decoder; if `scalar`, of {"model", "head"}, which has no output matrix."""
    table, prefix = [], ("model",) if scalar else ()
    for name, (shape, axes, _) in transformer.top_table(cfg).items():
        if not (scalar and name == "lm_head"):
            table.append(Entry((*prefix, name), (_TOP[name],), shape, axes))
    for name, (shape, axes, _) in transformer.layer_table(cfg).items():
        matrix = len(shape) == 2
        names = tuple(f"model.layers.{i}.{LAYER_NAMES[name]}" for i in range(cfg.layers))
        shape, axes = (shape[::-1], axes[::-1]) if matrix else (shape, axes)
        table.append(Entry((*prefix, "layers", name), names, shape, axes, stacked=True, transposed=matrix))
    if scalar:
        table.append(Entry(("head", "score"), ("score.weight",), (1, cfg.width), (None, "norm"), row=True))
    return table


def check(checkpoint: Checkpoint, table: Sequence[Entry], tied: bool) -> None:
    """UserError that lists every tensor that is missing, unexpected, of a wrong shape or of an unsupported dtype."""
    wanted = {name: entry for entry in table for name in entry.names}
    extra = {n for n in checkpoint.names - wanted.keys() if not _DERIVED.fullmatch(n)}
    if tied and _TOP["lm_head"] in extra:
        _check_same(checkpoint, _TOP["embed"], _TOP["lm_head"])
        extra.remove(_TOP["lm_head"])
    problems = []
    if missing := sorted(wanted.keys() - checkpoint.names):
        problems.append(f"missing: {listed(missing)}")
    if extra:
        problems.append(f"not part of the model: {listed(sorted(extra))}")
    for name in sorted(wanted.keys() & checkpoint.names):
        with checkpoint.slices(name) as tensor:
            shape, dtype = tuple(tensor.get_shape()), tensor.get_dtype()
        if shape != wanted[name].shape:
            problems.append(f"{name} has shape {shape}, expected {wanted[name].shape}")
        if dtype not in READABLE:
            problems.append(f"{name} has dtype {dtype}, expected one of {', '.join(sorted(READABLE))}")
    if problems:
        raise UserError(f"{checkpoint.folder}: the weights do not fit its config.json: {listed(problems, '; ')}")


def _check_same(checkpoint: Checkpoint, first: str, second: str, rows: int = 4096) -> None:
    """UserError if a folder with tied embeddings stores an output matrix of its own: it would be ignored silently."""
    if first not in checkpoint.names:
        return  # reported as missing
    with checkpoint.slices(first) as a, checkpoint.slices(second) as b:
        count = a.get_shape()[0]
        parts = [slice(i, min(i + rows, count)) for i in range(0, count, rows)]
        same = a.get_shape() == b.get_shape() and all(np.array_equal(a[part], b[part]) for part in parts)
    if not same:
        raise UserError(f"{checkpoint.folder}: tie_word_embeddings is true, but {second} differs from {first}")


def load_params(folder: str | Path, cfg: ModelConfig, place: Placement, scalar: bool = False, int8: bool = False) -> dict:
    """The parameters in `cfg.param_dtype` (a scalar head in float32), in the shardings of `place`.

    `int8`: the matrices of the blocks are quantised to 8 bits, so the devices hold only one of them unquantised at a time.
    The host holds one tensor at a time, or the slices of it for this process's devices. UserError: see `check`.
    """
    table, checkpoint = name_table(cfg, scalar), Checkpoint(folder)
    check(checkpoint, table, cfg.tied_embeddings and not scalar)
    params: dict = {}
    for entry in table:
        node = params
        for key in entry.path[:-1]:
            node = node.setdefault(key, {})
        dtype = jnp.dtype("float32" if entry.row else cfg.param_dtype)
        loaded = (_load_stacked if entry.stacked else _load_one)(checkpoint, entry, dtype, place)
        if int8 and entry.transposed:
            loaded = kept_in_8_bits(loaded, ("layers", *_our_axes(entry)), place)
        node[entry.path[-1]] = loaded
    check_finite(folder, params, table, place)
    return params


def check_finite(folder: str | Path, params: Mapping[str, Any], table: Sequence[Entry], place: Placement) -> None:
    """UserError that lists the tensors of a folder with NaN or infinite weights."""

    def finite(params: Mapping[str, Any]) -> list[jax.Array]:
        found = []
        for entry in table:
            parts = jax.tree.leaves(functools.reduce(lambda node, key: node[key], entry.path, params))
            # Layer by layer: a mask of a whole stack would be a quarter of its size.
            rows = [jax.lax.map(lambda x: jnp.isfinite(x).all(), x if entry.stacked else x[None]) for x in parts]
            found.append(functools.reduce(jnp.logical_and, rows))
        return found

    rows = jax.device_get(jax.jit(finite, out_shardings=place.replicated)(params))
    if wrong := [name for entry, row in zip(table, rows, strict=True) for name, ok in zip(entry.names, row, strict=True) if not ok]:
        raise UserError(f"{folder}: the weights contain NaN or infinity: {listed(wrong)}")


def _read(checkpoint: Checkpoint, name: str, entry: Entry, place: Placement) -> jax.Array:
    """One tensor on the mesh, in the checkpoint's layout. Every device reads only its own slice."""
    with checkpoint.slices(name) as tensor:
        return jax.make_array_from_callback(entry.shape, place.array(entry.axes, entry.shape), lambda index: tensor[index])


def _load_one(checkpoint: Checkpoint, entry: Entry, dtype: jnp.dtype, place: Placement) -> jax.Array:
    out = jax.eval_shape(entry.ours, jax.ShapeDtypeStruct(entry.shape, dtype))
    sharding = place.array(_our_axes(entry), out.shape)
    convert = jax.jit(lambda x: entry.ours(x).astype(dtype), out_shardings=sharding)
    return convert(_read(checkpoint, entry.names[0], entry, place)).block_until_ready()


def _load_stacked(checkpoint: Checkpoint, entry: Entry, dtype: jnp.dtype, place: Placement) -> jax.Array:
    """Loads layer by layer into one stacked array, which is allocated once and updated in place."""
    one = jax.eval_shape(entry.ours, jax.ShapeDtypeStruct(entry.shape, dtype))
    shape = (len(entry.names), *one.shape)
    sharding = place.array(("layers", *_our_axes(entry)), shape)

    @partial(jax.jit, donate_argnums=0, out_shardings=sharding)
    def put(stack, x, i):
        return jax.lax.dynamic_update_index_in_dim(stack, entry.ours(x).astype(dtype), i, 0)

    stack = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()
    for i, name in enumerate(entry.names):  # blocking bounds the memory: else the host reads ahead of the device
        stack = put(stack, _read(checkpoint, name, entry, place), np.int32(i)).block_until_ready()
    return stack


def _our_axes(entry: Entry) -> tuple[str | None, ...]:
    return entry.axes[::-1] if entry.transposed else entry.axes[1:] if entry.row else entry.axes


def _tensors(params: Mapping[str, Any], table: Sequence[Entry], dtype: str, place: Placement) -> Iterator[tuple[str, Any]]:
    """(name, function that copies the tensor to the host), in the order of a forward pass, layer by layer."""

    def taker(entry: Entry):
        return jax.jit(
            lambda x, i: entry.theirs(x[i] if entry.stacked else x).astype(dtype), out_shardings=place.replicated
        )  # fmt: skip

    takers = {entry.path: taker(entry) for entry in table}

    def fetch(entry: Entry, i: int) -> np.ndarray:
        x = params
        for key in entry.path:
            x = x[key]
        out = np.ascontiguousarray(takers[entry.path](x, np.int32(i)).addressable_data(0))
        if dtype == "float16" and not np.isfinite(out).all():
            raise UserError(f"{entry.names[i]} has values too large for float16; export with --dtype bfloat16 or float32")
        return out

    layers = max(len(e.names) for e in table)
    before = [e for e in table if not e.stacked and e.path[-1] == "embed"]
    after = [e for e in table if not e.stacked and e not in before]
    plan = [(e, 0) for e in before] + [(e, i) for i in range(layers) for e in table if e.stacked] + [(e, 0) for e in after]
    for entry, i in plan:
        yield entry.names[i], partial(fetch, entry, i)


def save_params(
    params: Mapping[str, Any], cfg: ModelConfig, folder: str | Path, place: Placement, *, dtype: str, scalar: bool = False,
    max_shard_bytes: int = 5 * 10**9,
) -> list[Path]:  # fmt: skip
    """Writes model.safetensors, or shards of at most `max_shard_bytes` with their index. Returns the files.

    Every process must call it; the first one writes. A tensor above the limit gets a shard of its own. The unused output
    matrix of a scalar model is left out. UserError if a weight does not fit into float16.
    """
    folder, table = Path(folder), name_table(cfg, scalar)
    size_of = {name: int(np.prod(e.shape)) * jnp.dtype(dtype).itemsize for e in table for name in e.names}
    fetch = dict(_tensors(params, table, dtype, place))
    shards: list[list[str]] = [[]]
    for name in fetch:
        if shards[-1] and sum(size_of[n] for n in shards[-1]) + size_of[name] > max_shard_bytes:
            shards.append([])
        shards[-1].append(name)
    files = [SINGLE] if len(shards) == 1 else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, names in zip(files, shards, strict=True):
        tensors = {name: fetch[name]() for name in names}
        if jax.process_index() == 0:
            save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(shards) > 1 and jax.process_index() == 0:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(size_of.values())}, "weight_map": weight_map}
        state_files.write_text(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
    return [folder / file for file in files]
