"""Trees between hosts and devices, and between shardings, in chunks: what is under way at a time has a bound in bytes.

    shard    host arrays -> global arrays      (each process reads only the slices that its devices hold)
    gather   global arrays -> host arrays      (whole, on every process)
    reshard  global arrays -> other shardings

With several processes every process calls these with the same trees, in the same order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rlaif_jax.errors import UserError
from rlaif_jax.sharding.rules import split_axes
from rlaif_jax.sharding.trees import leaf_name

CHUNK = 256 * 2**20


def shard(tree: Any, shardings: Any, max_bytes: int = CHUNK) -> Any:
    """Host arrays (NumPy, memory maps, or anything with shape, dtype and slices) as global arrays.

    `shardings` is a tree of them or one for all. Every process passes the same whole arrays, but only the slices for its
    own devices are read; a slice of a memory map comes from disk then. At most `max_bytes` are copied on a host at a time.
    What is a jax.Array already is resharded.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def one(path, x, sharding):
        if isinstance(x, jax.Array) and (sharding.is_fully_addressable or not x.is_fully_addressable):
            return _reshard_leaf(x, sharding, max_bytes, leaf_name(path))
        pieces, under_way = [], 0
        for device, index in sharding.addressable_devices_indices_map(x.shape).items():
            piece = _to_device(x, index, device, max_bytes)
            pieces.append(piece)
            under_way += piece.nbytes
            if under_way >= max_bytes:
                jax.block_until_ready(pieces)
                under_way = 0
        return jax.make_array_from_single_device_arrays(x.shape, sharding, pieces)

    return jax.tree_util.tree_map_with_path(one, tree, shardings)


def _to_device(x: Any, index: tuple[slice, ...], device: jax.Device, max_bytes: int) -> jax.Array:
    """x[index] on a device; by parts of its first dimension where it is larger than the bound."""
    shape = tuple(len(range(*s.indices(n))) for s, n in zip(index, x.shape, strict=True))
    size = math.prod(shape) * np.dtype(x.dtype).itemsize
    if size <= max_bytes or not shape or shape[0] < 2:
        return jax.device_put(np.array(x[index], dtype=x.dtype), device)  # a copy: the CPU backend may keep what it is given
    rows = max(max_bytes * shape[0] // size, 1)
    start = index[0].indices(x.shape[0])[0]
    out = jax.device_put(jax.numpy.zeros(shape, x.dtype), device)
    for at in range(0, shape[0], rows):
        at = min(at, shape[0] - rows)  # the last part overlaps the one before it: one compiled shape
        piece = np.array(x[(slice(start + at, start + at + rows), *index[1:])], dtype=x.dtype)
        out = _write_rows(out, jax.device_put(piece, device), np.int32(at))
        out.block_until_ready()
    return out


@functools.partial(jax.jit, donate_argnums=0)
def _write_rows(out: jax.Array, piece: jax.Array, at: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(out, piece, at, axis=0)


def gather(tree: Any, max_bytes: int = CHUNK) -> Any:
    """NumPy arrays with the whole content of every leaf, on every process; jax.device_get that works with several.

    What a process cannot see is copied to it over the devices, at most `max_bytes` of it at a time; UserError that names
    an array where the smallest piece is larger.
    """
    if all(_visible(x) for x in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    return jax.tree_util.tree_map_with_path(lambda path, x: _gather_leaf(x, max_bytes, leaf_name(path)), tree)


def gather_each(tree: Any, max_bytes: int = CHUNK) -> Iterator[tuple[str, np.ndarray]]:
    """(name, whole NumPy array) of one leaf after the other, so that a host never holds the whole tree."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield leaf_name(path), gather(leaf, max_bytes)


def _visible(x: Any) -> bool:
    """Whether this process's own devices hold all of it."""
    return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated


def _gather_leaf(x: Any, max_bytes: int, name: str) -> Any:
    if _visible(x):
        return jax.device_get(x)
    whole = NamedSharding(x.sharding.mesh, PartitionSpec())
    if x.nbytes <= max_bytes:
        return np.asarray(_moved(x, whole))
    cut = _find_cut(x, x.shape, max_bytes, name)
    out = np.empty(x.shape, x.dtype)
    view = out.reshape(_split(x.shape, cut.dim, cut.blocks))
    for start in cut.starts:
        piece = np.asarray(_moved(_cut(x, cut, start), whole))
        within = (slice(None),) * (cut.dim + 1) + (slice(start, start + cut.count),)
        view[within] = piece.reshape(_split(piece.shape, cut.dim, cut.blocks))
    return out


def reshard(tree: Any, shardings: Any, max_bytes: int = CHUNK, donate: bool = False) -> Any:
    """Global arrays in other shardings; on one device, at most about `max_bytes` exist twice at a time.

    A larger array goes piece by piece along one dimension. UserError that names it where even the smallest such piece is
    larger than the bound. `donate` frees each array once it has been moved (the tree that was passed is then no longer
    usable).
    """

    def one(path, x, sharding):
        moved = _reshard_leaf(x, sharding, max_bytes, leaf_name(path))
        if donate and moved is not x:
            moved.block_until_ready()
            x.delete()
        return moved

    return jax.tree_util.tree_map_with_path(one, tree, shardings)


def _reshard_leaf(x: jax.Array, sharding: NamedSharding, max_bytes: int, name: str) -> jax.Array:
    if x.sharding == sharding:
        return x
    before, after = x.sharding.shard_shape(x.shape), sharding.shard_shape(x.shape)
    if max(math.prod(before), math.prod(after)) * x.dtype.itemsize <= max_bytes:
        return _moved(x, sharding).block_until_ready()
    cut = _find_cut(x, after, max_bytes, name)
    out = jax.jit(lambda: jax.numpy.zeros(x.shape, x.dtype), out_shardings=sharding)()
    paste = _paster(sharding, cut.dim, cut.blocks * after[cut.dim] // x.shape[cut.dim])
    for start in cut.starts:
        out = paste(out, _moved(_cut(x, cut, start), sharding), np.int32(start)).block_until_ready()
    return out


class _Cut(NamedTuple):
    """An array's dimension as `blocks` blocks that no device shares in part; a piece takes `count` entries of each."""

    dim: int
    blocks: int
    count: int
    starts: list[int]  # within a block; the last piece overlaps the one before it, so that all have one shape


def _find_cut(x: jax.Array, after: tuple[int, ...], max_bytes: int, name: str) -> _Cut:
    """Along which dimension to go so that a piece takes at most `max_bytes` on a device, here and where it goes."""
    before = x.sharding.shard_shape(x.shape)
    blocks = [math.lcm(n // b, n // a) if n else 1 for n, b, a in zip(x.shape, before, after, strict=True)]
    lengths = [n // k if n % k == 0 else 0 for n, k in zip(x.shape, blocks, strict=True)]
    dim = int(np.argmax(lengths))
    size = max(math.prod(before), math.prod(after)) * x.dtype.itemsize
    count = max_bytes * lengths[dim] // size
    if count < 1:
        raise UserError(
            f"{name or 'the array'}: {size // max(lengths[dim], 1):,} bytes per device must move at once (shape {x.shape}, "
            f"on a device {before} before, {after} after); the bound is {max_bytes:,}"
        )
    starts = [min(at, lengths[dim] - count) for at in range(0, lengths[dim], count)]
    return _Cut(dim, blocks[dim], count, starts)


def _split(shape: tuple[int, ...], dim: int, blocks: int) -> tuple[int, ...]:
    return (*shape[:dim], blocks, shape[dim] // blocks, *shape[dim + 1 :])


def _moved(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    if x.sharding.device_set == sharding.device_set and not x.is_fully_addressable:
        return _identity(sharding)(x)
    return jax.device_put(x, sharding)


@functools.lru_cache(maxsize=256)
def _identity(sharding: NamedSharding):
    return jax.jit(lambda x: x, out_shardings=sharding)


def _cut(x: jax.Array, cut: _Cut, start: int) -> jax.Array:
    """A piece: `count` entries of every block, each from the device that holds it, without communication."""
    own = cut.blocks * x.sharding.shard_shape(x.shape)[cut.dim] // x.shape[cut.dim]
    return _cutter(x.sharding, x.ndim, cut.dim, own, cut.count)(x, np.int32(start))


@functools.lru_cache(maxsize=256)
def _cutter(sharding: jax.sharding.Sharding, rank: int, dim: int, own: int, count: int):
    def cut(block, start):
        piece = jax.lax.dynamic_slice_in_dim(block.reshape(_split(block.shape, dim, own)), start, count, dim + 1)
        return piece.reshape(*block.shape[:dim], own * count, *block.shape[dim + 1 :])

    if not isinstance(sharding, NamedSharding):  # an array on one device
        return jax.jit(cut)
    spec = PartitionSpec(*(p or None for p in split_axes(sharding.spec, rank)))
    return jax.jit(jax.shard_map(cut, mesh=sharding.mesh, in_specs=(spec, PartitionSpec()), out_specs=spec))


@functools.lru_cache(maxsize=256)
def _paster(sharding: NamedSharding, dim: int, own: int):
    def paste(block, piece, start):
        view, part = (a.reshape(_split(a.shape, dim, own)) for a in (block, piece))
        return jax.lax.dynamic_update_slice_in_dim(view, part, start, dim + 1).reshape(block.shape)

    specs = (sharding.spec, sharding.spec, PartitionSpec())
    return jax.jit(jax.shard_map(paste, mesh=sharding.mesh, in_specs=specs, out_specs=sharding.spec), donate_argnums=0)
