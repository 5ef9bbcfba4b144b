"""What every one of two processes with four devices each does in test_hosts.py; any failure is a non-zero exit code."""

import sys
import time

import jax
import numpy as np

from rlaif_jax.errors import UserError
from rlaif_jax.sharding import (
    MeshConfig,
    Placement,
    all_values,
    barrier,
    broadcast,
    connect,
    gather,
    global_batch,
    host_rows,
    init_distributed,
    local_rows,
    make_mesh,
    on_first,
    reshard,
    shard,
)

X = np.arange(32.0, dtype=np.float32).reshape(16, 2)


def rows_go_where_the_mesh_says(index: int) -> None:
    """A plain mesh, one whose fsdp axis crosses the processes, and one that splits no rows between them."""
    crossing = MeshConfig(data=2, fsdp=4, dcn_data=1, dcn_fsdp=2, granule="process")
    shares = {
        MeshConfig(data=2, fsdp=2, tensor=2): [range(8), range(8, 16)],
        crossing: [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]],
        MeshConfig(data=1, fsdp=1, tensor=8): [range(16), range(16)],
    }
    for cfg, expected in shares.items():
        place = Placement.of(make_mesh(cfg))
        mine = host_rows(place, 16)
        assert mine.tolist() == list(expected[index]), (cfg, mine)
        batch = global_batch({"x": X[mine]}, place)["x"]
        assert batch.shape == X.shape
        np.testing.assert_array_equal(local_rows(batch), X[mine])
        np.testing.assert_array_equal(gather(batch), X)
        np.testing.assert_allclose(jax.jit(lambda x: x.sum())(batch), X.sum())
    try:
        host_rows(Placement.of(make_mesh(crossing)), 12)
    except UserError as error:
        assert "multiple of the 8 row shards" in str(error)
    else:
        raise AssertionError("12 rows over 8 shards of several processes")


def trees_move() -> None:
    place = Placement.of(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    big = np.arange(24 * 16 * 3, dtype=np.float32).reshape(24, 16, 3)
    spread = shard({"x": big}, {"x": place.array(("data", "fsdp", None), big.shape)}, max_bytes=500)
    np.testing.assert_array_equal(gather(spread, max_bytes=1200)["x"], big)
    other = reshard(spread, {"x": place.array((None, "tensor", None), big.shape)}, max_bytes=1200)
    np.testing.assert_array_equal(gather(other)["x"], big)
    alone = place.local()
    assert alone.sizes["data"] == 4
    np.testing.assert_array_equal(gather(shard(X, alone.rows(16))), X)
    head = shard({"w": jax.numpy.ones(16)}, {"w": place.array(("embed",), (16,))})
    np.testing.assert_array_equal(gather(head)["w"], 1)


def values_are_told(index: int) -> None:
    text = broadcast("祝福" * 1_500_000 if index == 0 else None, "big")
    assert len(text) == 3_000_000
    assert all_values({"process": index}) == [{"process": 0}, {"process": 1}]
    assert on_first(lambda: [index, float("nan")])[0] == 0
    began = time.monotonic()
    if index == 0:
        time.sleep(1.0)
    barrier("late")
    assert index == 0 or time.monotonic() - began > 0.5
    for kind in (UserError, OSError):

        def fails(kind=kind):
            raise kind("the disk is full")

        try:
            on_first(fails)
        except (UserError, OSError, RuntimeError) as error:
            assert "the disk is full" in str(error)
            expected = kind if index == 0 or kind is UserError else RuntimeError
            assert type(error) is expected, (index, error)
        else:
            raise AssertionError("nobody heard of it")


def what_json_cannot_hold_keeps_nobody_waiting(index: int) -> None:
    for call in (lambda: broadcast({1, 2}, timeout=60), lambda: all_values({1, 2} if index else 3, timeout=60),
                 lambda: on_first(lambda: np.float32(3))):  # fmt: skip
        try:
            call()
        except (TypeError, RuntimeError) as error:
            assert "must be JSON-serializable" in str(error), error
        else:
            raise AssertionError("a value that JSON cannot hold")
    assert broadcast(index) == 0, "and all go on"


def one_comes_late(index: int) -> None:
    """Later than gloo waits for it when it connects."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    place = Placement.of(mesh)
    connect(mesh)
    batch = global_batch({"x": X[host_rows(place, 16)]}, place)["x"]
    if index == 1:
        time.sleep(40.0)
    np.testing.assert_allclose(jax.jit(lambda x: x.sum())(batch), X.sum())


if __name__ == "__main__":
    me = init_distributed()
    assert (me.count, me.source, len(jax.devices())) == (2, "variables", 8)
    if sys.argv[1:] == ["late"]:
        one_comes_late(me.index)
        sys.exit()
    rows_go_where_the_mesh_says(me.index)
    trees_move()
    values_are_told(me.index)
    what_json_cannot_hold_keeps_nobody_waiting(me.index)
