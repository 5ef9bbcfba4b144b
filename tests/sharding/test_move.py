"""Movement in bounded chunks; init without a whole copy; rows to the mesh and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rlaif_jax.errors import UserError
from rlaif_jax.sharding import (
    MeshConfig,
    Placement,
    all_values,
    barrier,
    broadcast,
    gather,
    gather_each,
    global_batch,
    host_rows,
    local_rows,
    make_mesh,
    move,
    on_first,
    reshard,
    shard,
    sharded_init,
)

X = np.arange(24 * 16 * 3, dtype=np.float32).reshape(24, 16, 3)


def _on(place, *spec) -> NamedSharding:
    return NamedSharding(place.mesh, PartitionSpec(*spec))


@pytest.fixture
def moved(monkeypatch):
    """The bytes per device of every single move between shardings."""
    seen = []
    original = move._moved

    def noted(x, sharding, *donate):
        out = original(x, sharding, *donate)
        seen.append(max(s.data.nbytes for s in out.addressable_shards))
        return out

    monkeypatch.setattr(move, "_moved", noted)
    return seen


@pytest.mark.parametrize("max_bytes", [10**9, 500, 7])
def test_shard_reads_slices_and_puts_them_right(eight_devices, max_bytes, tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    tree = shard({"a": mapped, "b": np.float32(3)}, {"a": _on(eight_devices, "data", "fsdp"), "b": _on(eight_devices)}, max_bytes)
    np.testing.assert_array_equal(tree["a"], X)
    assert tree["a"].addressable_shards[0].data.shape == (12, 8, 3) and float(tree["b"]) == 3


def test_shard_copies_its_source(eight_devices):
    source = X.copy()
    placed = shard(source, _on(eight_devices))
    source[:] = -1
    np.testing.assert_array_equal(placed, X)


@pytest.mark.parametrize("spec", [("tensor", "fsdp"), (None, "fsdp"), (("data", "fsdp"),), ("data", "fsdp", None), ()])
@pytest.mark.parametrize("max_bytes", [10**9, 2400, 600])
def test_reshard_keeps_every_entry_within_the_bound(eight_devices, moved, spec, max_bytes):
    source = shard({"x": X}, _on(eight_devices, "data", "fsdp"))
    target = _on(eight_devices, *spec)
    out = reshard(source, {"x": target}, max_bytes)["x"]
    np.testing.assert_array_equal(out, X)
    assert out.sharding.is_equivalent_to(target, 3)
    assert max(moved, default=0) <= max_bytes
    np.testing.assert_array_equal(source["x"], X)


def test_reshard_to_another_mesh_and_donation(eight_devices):
    source = {"x": shard(X, _on(eight_devices, "data", "fsdp"))}
    other = Placement(make_mesh(MeshConfig(data=1, fsdp=2, tensor=4)))
    out = reshard(source, {"x": _on(other, "fsdp", "tensor")}, 600, donate=True)["x"]
    np.testing.assert_array_equal(out, X)
    assert source["x"].is_deleted() and out.sharding.mesh == other.mesh


@pytest.mark.parametrize("max_bytes", [10**9, 700])
def test_an_array_on_one_device_is_spread(eight_devices, max_bytes):
    out = shard({"x": jnp.asarray(X)}, {"x": _on(eight_devices, "data", "fsdp")}, max_bytes)["x"]
    np.testing.assert_array_equal(out, X)


def test_what_must_move_at_once_is_named():
    mesh = Placement(make_mesh(MeshConfig(data=1, fsdp=4, tensor=2)))
    x = shard({"w": np.ones((8, 8), np.float32)}, _on(mesh, "fsdp", "tensor"))
    with pytest.raises(UserError, match="w: 16 bytes per device must move at once"):
        reshard(x, {"w": _on(mesh, "tensor", "fsdp")}, 8)
    np.testing.assert_array_equal(reshard(x, {"w": _on(mesh, "tensor", "fsdp")}, 16)["w"], 1)


def test_gather_and_the_pieces_it_is_made_of(eight_devices, monkeypatch):
    tree = shard({"a": X, "b": X[:, 0]}, {"a": _on(eight_devices, ("data", "fsdp"), "tensor"), "b": _on(eight_devices, None)})
    jax.tree.map(np.testing.assert_array_equal, gather(tree), {"a": X, "b": X[:, 0]})
    assert [name for name, _ in gather_each(tree)] == ["a", "b"]
    kind = type(tree["a"])
    for bound in (10**9, 2500, 768):  # as another process would: nothing but its own is addressable
        with monkeypatch.context() as patch:
            patch.setattr(move, "_visible", lambda x: not isinstance(x, kind) or x.is_fully_replicated)
            np.testing.assert_array_equal(gather(tree["a"], bound), X)


def test_init_is_whole_nowhere():
    """The compiled program's output and temporaries on one device are a share of the array, not the array."""
    place = Placement.of(make_mesh(MeshConfig(data=1, fsdp=8)))
    axes, shape = {"w": ("embed", None)}, (4096, 512)

    def init(key):
        return {"w": jax.random.normal(key, shape)}

    out = sharded_init(init, axes, place, jax.random.key(0))
    assert {s.data.shape for s in out["w"].addressable_shards} == {(512, 512)}
    abstract = jax.eval_shape(init, jax.random.key(0))
    compiled = jax.jit(init, out_shardings=place.tree(axes, abstract)).lower(jax.random.key(0)).compile()
    memory, whole = compiled.memory_analysis(), 4 * 4096 * 512
    assert memory.output_size_in_bytes <= whole / 8 + 1024
    assert memory.temp_size_in_bytes <= whole / 2, "random bits and what becomes of them, for an eighth of the rows"
    np.testing.assert_allclose(out["w"], init(jax.random.key(0))["w"], rtol=1e-6)


def test_rows_to_the_mesh_and_back(eight_devices):
    rows = host_rows(eight_devices, 16)
    np.testing.assert_array_equal(rows, np.arange(16))
    batch = global_batch({"x": X[:16][rows]}, eight_devices)["x"]
    np.testing.assert_array_equal(local_rows(batch), X[:16])
    columns = jax.device_put(X[:16], _on(eight_devices, "data", "tensor"))
    np.testing.assert_array_equal(local_rows(columns), X[:16])


def test_one_process_alone_needs_nobody():
    assert broadcast({"a": [1, "二"]}) == {"a": [1, "二"]} and all_values(3) == [3] and barrier() is None
    assert on_first(lambda: 7) == 7

    def fails():
        raise UserError("mine")

    with pytest.raises(UserError, match="mine"):
        on_first(fails)


def test_a_local_placement_uses_this_processs_devices(eight_devices):
    local = eight_devices.local()
    assert local.sizes["data"] == jax.local_device_count() and local.rules == eight_devices.rules
    assert jnp.sum(jax.device_put(X, local.rows(24))) == X.sum()
