"""Meshes, rules with repair, placement and bytes per device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rlaif_jax.errors import UserError
from rlaif_jax.models import transformer
from rlaif_jax.models.model_config import PRESETS
from rlaif_jax.sharding import DEFAULT_RULES, MeshConfig, Placement, bytes_per_device, global_batch, make_mesh, spec_for

SIZES = {"data": 2, "fsdp": 2, "tensor": 2, "context": 1}


def test_mesh_sizes():
    assert MeshConfig(data=-1, fsdp=2, tensor=2).sizes(8) == (2, 2, 2, 1)
    with pytest.raises(UserError, match="there are 8"):
        MeshConfig(data=3).sizes(8)
    with pytest.raises(UserError, match="at most one"):
        MeshConfig(data=-1, fsdp=-1).sizes(8)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert dict(mesh.shape) == SIZES


def test_specs_and_repairs():
    assert spec_for(("vocab", "embed"), (64, 32), SIZES, DEFAULT_RULES)[0] == PartitionSpec("tensor", "fsdp")
    assert spec_for(("batch", None), (8, 3), SIZES, DEFAULT_RULES)[0] == PartitionSpec(("data", "fsdp"))
    spec, repairs = spec_for(("vocab", "embed"), (63, 32), SIZES, DEFAULT_RULES, "embed")
    assert spec == PartitionSpec(None, "fsdp")
    assert len(repairs) == 1 and "size 63" in str(repairs[0])
    with pytest.raises(UserError, match="vocabb"):
        spec_for(("vocabb",), (4,), SIZES, DEFAULT_RULES)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_axes_for_every_parameter(name):
    cfg = PRESETS[name].with_vocab(1000) if PRESETS[name].vocab_size == 0 else PRESETS[name]
    abstract = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))
    axes = transformer.logical_axes(cfg)
    total = sum(x.size * 4 for x in jax.tree.leaves(abstract))
    split = bytes_per_device(axes, abstract, {"data": 1, "fsdp": 4, "tensor": 2, "context": 1})
    assert total / 8 <= split < total / 4


def test_batches_and_parameters_land_where_the_rules_say(eight_devices):
    batch = global_batch({"x": np.arange(16).reshape(8, 2)}, eight_devices)["x"]
    assert batch.sharding.spec == PartitionSpec(("data", "fsdp"))
    np.testing.assert_array_equal(batch, np.arange(16).reshape(8, 2))
    odd = global_batch({"x": np.arange(3)}, eight_devices)["x"]
    assert odd.sharding.is_fully_replicated
    gathered = eight_devices.without("fsdp")
    assert gathered.array(("embed", "heads"), (4, 4)).spec == PartitionSpec(None, "tensor")
    assert gathered.rows(8).spec == PartitionSpec(("data", "fsdp"))


def test_a_foreign_tree_is_placed(eight_devices):
    tree = {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}
    axes = {"kernel": ("embed", "mlp"), "bias": ("mlp",)}
    placed = jax.device_put(tree, eight_devices.tree(axes, tree))
    assert placed["kernel"].addressable_shards[0].data.shape == (2, 3)
    assert Placement(eight_devices.mesh).repairs({"b": ("mlp",)}, {"b": jnp.ones(5)})[0].size == 5
