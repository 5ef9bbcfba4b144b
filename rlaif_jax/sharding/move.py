"""Moves trees between hosts and devices and between shardings, in chunks of bounded size.

    shard    host arrays -> global arrays      (each process reads only the slices for its own devices)
    gather   global arrays -> host arrays      (full arrays, on every process)
    reshard  global arrays -> other shardings

With several processes, every process must make the same calls with the same trees, in the same order.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from rlaif_jax.errors import UserError
from rlaif_jax.sharding.rules import split_axes
from rlaif_jax.sharding.trees import map_named, named_leaves

CHUNK = 256 * 2**20


def shard(tree: Any, shardings: Any, max_bytes: int = CHUNK) -> Any:
    """Makes global arrays from host arrays (NumPy, memory maps, or anything with shape, dtype and slices).

    `shardings` is a tree of shardings, or one for all arrays. Every process passes the same full arrays, but reads only the
    slices for its own devices; slices of a memory map are read from disk at that time. The host copies at most `max_bytes` in
    one piece (or one entry of the longest dimension, if that is larger), and at most `max_bytes` more are in transfer to the
    devices. A leaf that is a jax.Array is resharded. UserError, with the array's name, if a shape does not fit its sharding or
    an integer needs 64 bits and JAX would truncate it.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    under_way: list[jax.Array] = []  # over all leaves, because many small ones also reach the bound

    def one(name, x, sharding):
        _check(x, sharding, name)
        if isinstance(x, jax.Array) and (sharding.is_fully_addressable or not x.is_fully_addressable):
            return _reshard_leaf(x, sharding, max_bytes, name)
        if _is_key(x):  # a key array that only this process holds
            data = one(name, np.asarray(jax.random.key_data(x)), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        pieces = []
        for device, index in sharding.addressable_devices_indices_map(x.shape).items():
            pieces.append(_to_device(x, index, SingleDeviceSharding(device, memory_kind=sharding.memory_kind), max_bytes, name))
            under_way.append(pieces[-1])
            if len(under_way) > 64 or sum(piece.nbytes for piece in under_way) >= max_bytes:
                jax.block_until_ready(under_way)
                under_way.clear()
        return jax.make_array_from_single_device_arrays(x.shape, sharding, pieces)

    return map_named(one, tree, shardings)


def _check(x: Any, sharding: NamedSharding, name: str) -> None:
    if isinstance(sharding.mesh, AbstractMesh):
        raise UserError(f"{name or 'the array'}: its sharding is on an abstract mesh; arrays need a mesh of real devices")
    try:
        sharding.shard_shape(tuple(x.shape))
    except (ValueError, IndexError) as error:
        raise UserError(f"{name or 'the array'} of shape {tuple(x.shape)} cannot be sharded as {sharding.spec}: {error}") from error


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)


def check_integers(x: np.ndarray, name: str) -> None:
    """UserError if JAX would silently truncate 64-bit integers to 32 bits (as it does unless jax_enable_x64 is on)."""
    kept = jax.dtypes.canonicalize_dtype(x.dtype)
    if x.dtype.kind in "iu" and kept != x.dtype and x.size and not np.array_equal(x.astype(kept), x):
        raise UserError(f"{name or 'the array'} has {x.dtype} values that do not fit {kept}; turn on jax_enable_x64, or rescale")


def _host_copy(x: Any, index: tuple[slice, ...], name: str) -> np.ndarray:
    """Copies x[index], because the CPU backend may keep a reference to its input; converts to native byte order."""
    piece = np.array(x[index], dtype=np.dtype(x.dtype).newbyteorder("="))
    check_integers(piece, name)
    return piece


def _to_device(x: Any, index: tuple[slice, ...], at: SingleDeviceSharding, max_bytes: int, name: str) -> jax.Array:
    """Copies x[index] to a device. If it is larger than the bound, copies it in parts along one dimension: the first one that
    is long enough to keep parts below the bound, else the longest."""
    shape = tuple(len(range(*s.indices(n))) for s, n in zip(index, x.shape, strict=True))
    size = math.prod(shape) * np.dtype(x.dtype).itemsize
    device: Any  # JAX gives it no type
    (device,) = at.device_set
    on_host = at.memory_kind not in (None, device.default_memory().kind)  # parts save nothing from host to host
    if size <= max_bytes or max(shape, default=0) < 2 or on_host:
        return jax.device_put(_host_copy(x, index, name), at)
    dim = next((d for d, n in enumerate(shape) if size <= max_bytes * n), int(np.argmax(shape)))
    count = max(max_bytes * shape[dim] // size, 1)
    first = index[dim].indices(x.shape[dim])[0]
    with _alone(device):
        out = jax.numpy.zeros(shape, jax.dtypes.canonicalize_dtype(x.dtype), device=at)
        for start in range(0, shape[dim], count):
            start = min(start, shape[dim] - count)  # the last part overlaps the previous one, so that all have one shape
            within = (*index[:dim], slice(first + start, first + start + count), *index[dim + 1 :])
            out = _write_part(out, jax.device_put(_host_copy(x, within, name), at), np.int32(start), dim)
            out.block_until_ready()
    return out


def _alone(device: jax.Device) -> Any:
    """A context for computations on one device, independent of the mesh that the caller has set."""
    return jax.set_mesh(Mesh(np.array([device]), ("alone",)))


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def _write_part(out: jax.Array, piece: jax.Array, at: jax.Array, dim: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(out, piece, at, axis=dim)


def gather(tree: Any, max_bytes: int = CHUNK) -> Any:
    """Returns every leaf as a full NumPy array, on every process: jax.device_get for several processes.

    Shards of other processes' devices are copied over the devices, at most `max_bytes` in one piece. UserError, with the
    array's name, if its smallest piece is larger than that. Typed random keys stay keys.
    """
    if all(_visible(x) for x in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    return map_named(lambda name, x: _gather_leaf(x, max_bytes, name), tree)


def gather_each(tree: Any, max_bytes: int = CHUNK) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, full NumPy array) leaf by leaf, so that a host never holds the full tree."""
    for name, leaf in named_leaves(tree):
        yield name, gather(leaf, max_bytes)


def _visible(x: Any) -> bool:
    """Whether this process can read the full array without communication."""
    return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated


def _gather_leaf(x: Any, max_bytes: int, name: str) -> Any:
    if _visible(x):
        return jax.device_get(x)
    if _is_key(x):
        return jax.random.wrap_key_data(_gather_leaf(jax.random.key_data(x), max_bytes, name), impl=jax.random.key_impl(x))
    whole = NamedSharding(x.sharding.mesh, PartitionSpec())
    if x.nbytes <= max_bytes:
        return np.asarray(_moved(x, whole))
    cut = _find_cut(x, x.shape, max_bytes, name)
    out = np.empty(x.shape, x.dtype)
    view = out.reshape(_split(x.shape, cut.dim, cut.blocks))
    for start in cut.starts:
        piece = np.asarray(_moved(_cut(x, cut, start), whole))
        within = (slice(None),) * (cut.dim + 1) + (slice(start, start + cut.length),)
        view[within] = piece.reshape(_split(piece.shape, cut.dim, cut.blocks))
    return out


def reshard(tree: Any, shardings: Any, max_bytes: int = CHUNK, donate: bool = False) -> Any:
    """Moves global arrays to other shardings, leaf by leaf.

    A shard larger than `max_bytes` moves in pieces along one dimension. Memory per device, beside the tree: the array that
    moves, in its new sharding, and a few pieces. `donate` frees each array after its move, so that only one array exists twice;
    the input tree is then unusable. UserError, with the array's name, if a shape does not fit its sharding or the smallest
    piece is larger than the bound.
    """
    uses = Counter(id(x) for x in jax.tree.leaves(tree))  # tied weights are in the tree more than once

    def one(name, x, sharding):
        if not isinstance(x, jax.Array):
            raise UserError(f"{name or 'the array'} is a {type(x).__name__}; reshard moves jax.Arrays (use shard for host arrays)")
        _check(x, sharding, name)
        uses[id(x)] -= 1
        return _reshard_leaf(x, sharding, max_bytes, name, donate and uses[id(x)] == 0)

    return map_named(one, tree, shardings)


def _reshard_leaf(x: jax.Array, sharding: NamedSharding, max_bytes: int, name: str, donate: bool = False) -> jax.Array:
    if x.sharding == sharding:
        return x
    before, after = x.sharding.shard_shape(x.shape), sharding.shard_shape(x.shape)
    if max(math.prod(before), math.prod(after)) * x.dtype.itemsize <= max_bytes:
        return _moved(x, sharding, donate).block_until_ready()
    cut = _find_cut(x, after, max_bytes, name)
    with jax.set_mesh(_mesh_of(sharding)):
        out = jax.jit(lambda: jax.numpy.zeros(x.shape, x.dtype), out_shardings=sharding)()
    paste = _paster(sharding, cut.dim, cut.blocks * after[cut.dim] // x.shape[cut.dim])
    for start in cut.starts:
        piece = _moved(_cut(x, cut, start), sharding)
        with jax.set_mesh(_mesh_of(sharding)):
            out = paste(out, piece, np.int32(start)).block_until_ready()
    if donate:
        x.delete()
    return out if out.sharding.memory_kind == sharding.memory_kind else jax.device_put(out, sharding)


class _Cut(NamedTuple):
    """How to cut an array into pieces along `dim`: the dimension is seen as `blocks` equal blocks, and a piece takes `length`
    entries of each. Blocks are so small that no device holds a fraction of one, before or after the move."""

    dim: int
    blocks: int
    length: int
    starts: list[int]  # within a block; the last piece overlaps the previous one, so that all have one shape


def _find_cut(x: jax.Array, after: tuple[int, ...], max_bytes: int, name: str) -> _Cut:
    """Finds the dimension to cut, so that a piece takes at most `max_bytes` per device in both shardings."""
    before = x.sharding.shard_shape(x.shape)
    blocks = [math.lcm(n // b, n // a) if n else 1 for n, b, a in zip(x.shape, before, after, strict=True)]
    lengths = [n // k if n % k == 0 else 0 for n, k in zip(x.shape, blocks, strict=True)]
    dim = int(np.argmax(lengths))
    size = max(math.prod(before), math.prod(after)) * x.dtype.itemsize
    count = max_bytes * lengths[dim] // size
    if count < 1:
        raise UserError(
            f"{name or 'the array'}: {size // max(lengths[dim], 1):,} bytes per device must move at once (shape {x.shape}, "
            f"shard {before} before, {after} after), but max_bytes is {max_bytes:,}"
        )
    starts = [min(at, lengths[dim] - count) for at in range(0, lengths[dim], count)]
    return _Cut(dim, blocks[dim], count, starts)


def _split(shape: tuple[int, ...], dim: int, blocks: int) -> tuple[int, ...]:
    return (*shape[:dim], blocks, shape[dim] // blocks, *shape[dim + 1 :])


def _mesh_of(sharding: NamedSharding) -> Mesh:
    """The mesh of an existing array's sharding: always a Mesh, although the type of a NamedSharding also allows abstract ones."""
    return cast(Mesh, sharding.mesh)


def _moved(x: jax.Array, sharding: NamedSharding, donate: bool = False) -> jax.Array:
    if x.sharding.device_set == sharding.device_set and not x.is_fully_addressable:
        with jax.set_mesh(_mesh_of(sharding)):
            return _identity(sharding, donate)(x)
    return jax.device_put(x, sharding, donate=donate)


@functools.lru_cache(maxsize=256)
def _identity(sharding: NamedSharding, donate: bool):
    return jax.jit(lambda x: x, out_shardings=sharding, donate_argnums=(0,) if donate else ())


def _cut(x: jax.Array, cut: _Cut, start: int) -> jax.Array:
    """Takes one piece: `length` entries of every block. Each device cuts its own shard, without communication."""
    own = cut.blocks * x.sharding.shard_shape(x.shape)[cut.dim] // x.shape[cut.dim]
    with jax.set_mesh(_mesh_of(x.sharding)) if isinstance(x.sharding, NamedSharding) else _alone(next(iter(x.devices()))):
        return _cutter(x.sharding, x.ndim, cut.dim, own, cut.length)(x, np.int32(start))


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
