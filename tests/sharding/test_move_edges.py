"""What a mover meets in other people's trees: contexts, tied weights, keys, memory kinds, odd dtypes and shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rlaif_jax.errors import UserError
from rlaif_jax.sharding import abstract_mesh, gather, global_batch, local_rows, make_mesh, move, reshard, shard

X = np.arange(24 * 16 * 3, dtype=np.float32).reshape(24, 16, 3)


def _on(place, *spec) -> NamedSharding:
    return NamedSharding(place.mesh, PartitionSpec(*spec))


@pytest.mark.parametrize("bound", [10**9, 600])
def test_donation_to_a_sharding_that_shares_the_buffers(eight_devices, bound):
    same = NamedSharding(make_mesh({"a": 8}), PartitionSpec())
    for before, after in ((_on(eight_devices, "fsdp"), _on(eight_devices, "fsdp", None)), (_on(eight_devices), same)):
        out = reshard({"w": shard(X, before)}, {"w": after}, bound, donate=True)
        np.testing.assert_array_equal(out["w"], X)


def test_donation_of_tied_weights(eight_devices):
    w = shard(X, _on(eight_devices, "fsdp"))
    to = _on(eight_devices, None, "tensor")
    out = reshard({"embed": w, "head": w}, {"embed": to, "head": to}, 600, donate=True)
    np.testing.assert_array_equal(out["embed"], X)
    np.testing.assert_array_equal(out["head"], X)
    assert w.is_deleted()


@pytest.mark.parametrize("bound", [10**9, 600])
@pytest.mark.parametrize("mine", [True, False], ids=["this mesh", "another mesh"])
def test_under_a_mesh_that_the_caller_has_set(eight_devices, bound, mine):
    with jax.set_mesh(eight_devices.mesh if mine else make_mesh({"a": 8})):
        split = shard({"x": X}, _on(eight_devices, "data", "fsdp"), bound)
        other = reshard(split, {"x": _on(eight_devices, "tensor")}, bound)
        lone = reshard({"x": jax.device_put(X, jax.devices()[3])}, {"x": _on(eight_devices, "tensor")}, bound)
    for tree in (split, other, lone):
        np.testing.assert_array_equal(gather(tree)["x"], X)


def test_one_long_row_goes_in_parts_too(eight_devices, monkeypatch):
    seen, copy = [], move._host_copy
    monkeypatch.setattr(move, "_host_copy", lambda *args: seen.append(copy(*args)) or seen[-1])
    long = np.arange(4096, dtype=np.float32)[None]
    np.testing.assert_array_equal(shard(long, _on(eight_devices), 1024), long)
    assert max(piece.nbytes for piece in seen) == 1024


def test_many_small_arrays_wait_for_each_other(eight_devices, monkeypatch):
    waits = []
    monkeypatch.setattr(move.jax, "block_until_ready", lambda tree: waits.append(sum(x.nbytes for x in tree)))
    shard({str(i): np.ones(500, np.float32) for i in range(30)}, _on(eight_devices), 8192)
    assert len(waits) >= 20 and max(waits) <= 2 * 8192


def test_parts_are_made_on_the_device_they_are_for(eight_devices, monkeypatch):
    made, zeros = [], jnp.zeros

    def noted(*args, **more):
        out = zeros(*args, **more)
        made.extend(device.id for device in out.devices())
        return out

    monkeypatch.setattr(move.jax.numpy, "zeros", noted)
    shard(X, _on(eight_devices, "data", "fsdp"), 500)
    assert sorted(made) == list(range(8))


@pytest.mark.parametrize("bound", [10**9, 600])
def test_the_memory_kind_is_kept(eight_devices, bound):
    host = _on(eight_devices, "fsdp").with_memory_kind("pinned_host")
    try:
        jax.device_put(X, host)
    except ValueError:
        pytest.skip("this backend has no pinned_host")
    placed = shard({"x": X}, host, bound)["x"]
    assert placed.sharding.memory_kind == "pinned_host"
    moved = reshard({"x": shard(X, _on(eight_devices, "tensor"))}, {"x": host}, bound)["x"]
    assert moved.sharding.memory_kind == "pinned_host"
    for array in (placed, moved):
        np.testing.assert_array_equal(array, X)


def test_typed_keys_stay_keys(eight_devices, monkeypatch):
    keys = jax.random.split(jax.random.key(3), 16)
    placed = shard({"keys": keys}, _on(eight_devices, "fsdp"))
    monkeypatch.setattr(move, "_visible", lambda x: not isinstance(x, jax.Array) or x.is_fully_replicated)
    found = gather(placed)["keys"]
    np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(keys))
    assert jax.random.key_impl(found) == jax.random.key_impl(keys)


def test_integers_that_would_be_cut_are_refused_and_others_are_not(eight_devices):
    for put in (lambda x: shard({"id": x}, _on(eight_devices)), lambda x: global_batch({"id": x}, eight_devices)):
        with pytest.raises(UserError, match="id has int64 values that do not fit int32"):
            put(np.full(8, 2**40 + 5))
        np.testing.assert_array_equal(put(np.arange(8))["id"], np.arange(8))
    np.testing.assert_array_equal(shard(np.arange(8, dtype=">f4"), _on(eight_devices)), np.arange(8))


def test_batches_without_rows_and_scalars(eight_devices):
    empty = global_batch({"x": np.zeros((0, 3), np.float32)}, eight_devices)["x"]
    assert local_rows(empty).shape == (0, 3)
    with pytest.raises(UserError, match="step is a scalar"):
        global_batch({"step": np.float32(1)}, eight_devices)
    with pytest.raises(UserError, match="scalar has no rows"):
        local_rows(jnp.float32(1))


def test_errors_name_the_array(eight_devices):
    with pytest.raises(UserError, match=r"w of shape \(7, 4\) cannot be sharded as"):
        shard({"w": np.ones((7, 4))}, _on(eight_devices, "fsdp"))
    with pytest.raises(UserError, match="w of shape"):
        shard({"w": np.ones(8)}, _on(eight_devices, None, "fsdp"))
    with pytest.raises(UserError, match="w is a ndarray; reshard moves jax.Arrays"):
        reshard({"w": np.ones(8)}, {"w": _on(eight_devices)})
    with pytest.raises(UserError, match="w: its sharding is on an abstract mesh"):
        shard({"w": np.ones(8)}, NamedSharding(abstract_mesh({"a": 8}, 8), PartitionSpec("a")))
