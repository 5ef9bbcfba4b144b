"""Meshes with axes of one's own, across slices and hosts, and without devices."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rlaif_jax.errors import UserError
from rlaif_jax.sharding import MeshConfig, Placement, abstract_mesh, make_mesh
from rlaif_jax.sharding.mesh import _hybrid, dcn_sizes, fill_sizes, granules


@dataclasses.dataclass(frozen=True)
class Chip:
    """As much of a device as a mesh asks for."""

    id: int
    process_index: int
    slice_index: int = 0
    platform: str = "gpu"
    device_kind: str = "chip"


def chips(slices: int, processes: int, each: int) -> list[Chip]:
    """`processes` per slice, `each` chips per process."""
    count = slices * processes * each
    return [Chip(i, i // each, i // (each * processes)) for i in range(count)]


def layout(sizes: dict[str, int], dcn: dict[str, int], devices: list[Chip], granule: str = "auto") -> np.ndarray:
    groups = granules(devices, granule, wanted=any(s > 1 for s in dcn.values()))
    return _hybrid(sizes, dcn_sizes(sizes, dcn, len(groups)), groups)


def test_axes_of_ones_own():
    mesh = make_mesh({"replica": 2, "model": -1})
    assert dict(mesh.shape) == {"replica": 2, "model": 4}
    with pytest.raises(UserError, match="needs 6 devices"):
        make_mesh({"replica": 2, "model": 3})
    assert fill_sizes({"a": -1, "b": 4}, 32) == {"a": 8, "b": 4}


def test_slices_are_the_outer_part_of_the_data_axis():
    array = layout({"data": 4, "fsdp": 4}, {"data": -1, "fsdp": 1}, chips(2, 2, 4))
    assert array.shape == (4, 4)
    slices = np.vectorize(lambda d: d.slice_index)(array)
    np.testing.assert_array_equal(slices, np.repeat([0, 0, 1, 1], 4).reshape(4, 4))
    assert len(set(array.flat)) == 16


def test_fsdp_may_cross_hosts_while_data_stays_inside():
    """dcn_fsdp 2: neighbours along data are on one host, the two halves of fsdp on two."""
    array = layout({"data": 2, "fsdp": 4}, {"data": 1, "fsdp": 2}, chips(1, 2, 4), "process")
    hosts = np.vectorize(lambda d: d.process_index)(array)
    np.testing.assert_array_equal(hosts, [[0, 0, 1, 1], [0, 0, 1, 1]])


def test_auto_takes_slices_then_processes_then_one_granule():
    assert len(granules(chips(3, 2, 2))) == 3
    assert len(granules(chips(1, 4, 2))) == 1
    assert len(granules(chips(1, 4, 2), wanted=True)) == 4
    assert len(granules(chips(3, 2, 2), "process")) == 6
    assert len(granules(jax.devices())) == 1, "CPU devices have no slices"


@pytest.mark.parametrize(
    ("dcn", "message"),
    [
        ({"data": 1, "fsdp": 1}, "product must be 2"),
        ({"data": 2, "fsdp": 2}, "product must be 2"),
        ({"data": -1, "fsdp": 1}, "axis data of size 1 cannot be split over 2 granules"),
        ({"model": 2}, "names the axis 'model'"),
    ],
)
def test_a_mesh_that_does_not_fit_the_granules_says_what_to_set(dcn, message):
    with pytest.raises(UserError, match=message):
        dcn_sizes({"data": 1, "fsdp": 8}, dcn, 2)


def test_uneven_granules_are_refused():
    with pytest.raises(UserError, match=r"\[4, 2\]"):
        granules([*chips(1, 1, 4), Chip(4, 1, 1), Chip(5, 1, 1)])


def test_config_mistakes_are_named():
    with pytest.raises(UserError, match=r"mesh.granule.*host"):
        MeshConfig(granule="host")
    with pytest.raises(UserError, match=r"mesh.rules.*default, fsdp"):
        MeshConfig(rules="zero")


def test_a_mesh_of_two_thousand_chips_needs_none():
    place = Placement(abstract_mesh(MeshConfig(data=-1, fsdp=64, tensor=4), 2048))
    assert place.sizes == {"data": 8, "fsdp": 64, "tensor": 4, "context": 1}
    assert place.array(("embed", "heads"), (4096, 4096)).spec == PartitionSpec("fsdp", "tensor")
    assert place.row_shards == 512


def test_the_hybrid_mesh_of_real_devices_computes():
    """Two halves of the eight CPU devices as granules: the same sums."""
    groups = [jax.devices()[:4], jax.devices()[4:]]
    devices = _hybrid({"data": 4, "fsdp": 2}, {"data": 2, "fsdp": 1}, groups)
    place = Placement(jax.sharding.Mesh(devices, ("data", "fsdp")))
    x = np.arange(32.0, dtype=np.float32).reshape(8, 4)
    placed = jax.device_put(x, place.array(("batch", None), (8, 4)))
    np.testing.assert_allclose(jax.jit(lambda x: x.sum(0))(placed), x.sum(0))
