"""Rules and placements as people write them: strings, slips of the pen, axes twice, meshes of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from rlaif_jax.errors import UserError
from rlaif_jax.sharding import (
    MeshConfig,
    Placement,
    abstract_mesh,
    all_values,
    broadcast,
    bytes_per_device,
    constrain,
    gather,
    global_batch,
    host_rows,
    make_mesh,
    on_first,
    reshard,
    shard,
    sharded_init,
    spec_for,
)

RULES = {"batch": ("data", "fsdp"), "embed": "fsdp", "mlp": "tensor", "norm": None}


@pytest.fixture
def place():
    return Placement.of(make_mesh({"data": -1, "fsdp": 2, "tensor": 2}), RULES)


def test_a_rule_may_be_one_name_everywhere(place):
    spec, repairs = spec_for(("embed", ["mlp"], "norm"), (8, 8, 8), {"fsdp": 2, "tensor": 2}, RULES)
    assert spec == PartitionSpec("fsdp", "tensor") and repairs == ()
    abstract = {"w": jax.ShapeDtypeStruct((8,), jnp.float32)}
    assert bytes_per_device({"w": ("embed",)}, abstract, {"fsdp": 2}, {"embed": "fsdp"}) == 16
    assert Placement.of(place.mesh, list(RULES.items())) == place, "pairs as Flax writes them"


def test_a_rule_for_an_axis_that_is_not_there_is_refused(place):
    with pytest.raises(UserError, match="rule 'embed': the mesh has no axis 'fdsp'; it has data, fsdp, tensor"):
        Placement.of(place.mesh, {"embed": "fdsp"})
    with pytest.raises(UserError, match="no rule set 'defualt'; known: default"):
        Placement.of(place.mesh, "defualt")
    assert Placement.of(place.mesh, "default").array(("embed",), (8,)).spec == PartitionSpec("fsdp")


def test_an_axis_twice_in_one_dimension_is_reported(place):
    axes, abstract = {"w": (("embed", "fsdp"), None)}, {"w": jnp.ones((8, 4))}
    assert place.tree(axes, abstract)["w"].spec == PartitionSpec()
    (repair,) = place.repairs(axes, abstract)
    assert "cannot use fsdp a second time" in str(repair)


def test_without_an_axis_nothing_lies_on_it(place):
    gathered = place.without("fsdp")
    assert gathered.array(("fsdp", "tensor"), (8, 8)).spec == PartitionSpec(None, "tensor")
    assert gathered.array(("embed", "mlp"), (8, 8)).spec == PartitionSpec(None, "tensor")
    assert gathered.rows(8).spec == PartitionSpec(("data", "fsdp")), "rows keep their axes"


def test_a_local_placement_of_a_mesh_of_ones_own():
    place = Placement.of(make_mesh({"replica": -1, "model": 2}), {"batch": "replica", "w": "model"})
    local = place.local()
    assert local.sizes == {"replica": 8, "model": 1} and local.row_shards == 8
    assert local.array(("model", "w"), (8, 8)).spec == PartitionSpec()


def test_explicit_axes():
    place = Placement.of(jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Explicit,) * 2))
    with jax.set_mesh(place.mesh):
        x = jax.jit(lambda x: constrain(2 * x, ("embed", "mlp"), place))(jnp.ones((8, 8)))
    assert x.sharding.spec == PartitionSpec("fsdp", "tensor")
    np.testing.assert_array_equal(x, 2)
    ones = np.arange(64.0, dtype=np.float32).reshape(8, 8)
    split = shard({"w": ones}, place.tree({"w": ("embed", "mlp")}, {"w": ones}), 16)
    other = reshard(split, place.tree({"w": (None, "fsdp")}, split), 32)
    np.testing.assert_array_equal(gather(other)["w"], ones)


@pytest.mark.parametrize("call", [
    lambda: make_mesh({"data": 8}, dcn={"data": 2}),
    lambda: make_mesh({"data": 8}, dcn={"nope": 2}),
    lambda: make_mesh(MeshConfig(data=1, fsdp=8, dcn_data=1, dcn_fsdp=2)),
])  # fmt: skip
def test_dcn_sizes_for_islands_that_are_not_there_are_refused(call):
    with pytest.raises(UserError, match="dcn"):
        call()


def test_an_unknown_granule_and_an_empty_mesh_are_refused():
    with pytest.raises(UserError, match="granule is 'slices'"):
        make_mesh({"data": 8}, granule="slices")
    with pytest.raises(UserError, match="at least one axis"):
        make_mesh({}, jax.devices()[:1])
    assert make_mesh({"data": 8}, dcn={"data": 1}).shape["data"] == 8


def test_data_needs_real_devices_and_rows_a_rule():
    pod = Placement.of(abstract_mesh({"data": 64}, 64), {"batch": "data"})
    for call in (lambda: host_rows(pod, 64), lambda: global_batch({"x": np.ones(64)}, pod),
                 lambda: sharded_init(lambda: jnp.ones(64), ("data",), pod)):  # fmt: skip
        with pytest.raises(UserError, match="needs real devices"):
            call()
    silent = Placement.of(make_mesh({"data": 8}), {"embed": "data"})
    for call in (lambda: silent.row_shards, lambda: silent.rows(8), silent.local):
        with pytest.raises(UserError, match='add "batch"'):
            call()


def test_errors_of_axes_have_a_subject(place):
    with pytest.raises(ValueError, match=r"the array: 1 axes \('embed',\) for an array of shape \(8, 2\)"):
        place.array(("embed",), (8, 2))
    with pytest.raises(ValueError, match="w: 0 axes None"):
        spec_for(None, (8,), {}, {}, "w")


def test_values_are_what_json_makes_of_them_with_one_process_too():
    assert broadcast({1: (2, 3)}) == {"1": [2, 3]} and all_values((1,)) == [[1]] and on_first(lambda: (1,)) == [1]
    for call in (lambda: broadcast({1, 2}), lambda: all_values({1, 2}), lambda: on_first(lambda: np.float32(3))):
        with pytest.raises(TypeError, match="must be JSON-serializable"):
            call()
