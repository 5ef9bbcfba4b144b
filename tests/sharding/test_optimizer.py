"""Where states lie that have other shapes than their parameters: factors of square matrices, memories with more dimensions."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rlaif_jax.errors import UserError
from rlaif_jax.sharding import abstract_mesh, named_leaves, optimizer_shardings
from rlaif_jax.sharding.optimizer import _factor, _subsequence

P = PartitionSpec


def _specs(optimizer, shapes, place, axes) -> dict[str, PartitionSpec]:
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    state = jax.eval_shape(optimizer.init, params)
    shardings = optimizer_shardings(state, params, place.tree(axes, params))
    return {name: s.spec for name, s in named_leaves(shardings)}


def test_the_factors_of_square_matrices_keep_one_axis_each(eight_devices):
    shapes = {"w": (256, 256), "stack": (4, 256, 256), "wide": (256, 4, 256)}
    axes = {"w": ("fsdp", "tensor"), "stack": (None, "fsdp", "tensor"), "wide": ("fsdp", None, "tensor")}
    specs = _specs(optax.adafactor(1e-3), shapes, eight_devices, axes)
    assert specs["0/v_row/w"] == P("fsdp") and specs["0/v_col/w"] == P("tensor")
    assert specs["0/v_row/stack"] == P(None, "fsdp") and specs["0/v_col/stack"] == P(None, "tensor")
    assert specs["0/v_row/wide"] == P("fsdp") and specs["0/v_col/wide"] == P(None, "tensor")


@pytest.mark.parametrize("factor", ["v_row", "v_col"])
def test_square_factors_are_sums_over_the_dimension_that_they_lack(factor):
    """One step of optax on a gradient that varies along its rows alone: the factor that has the rows varies, the other not."""
    optimizer = optax.adafactor(1e-3, min_dim_size_to_factor=8)
    params = {"w": jnp.ones((16, 16))}
    gradient = {"w": jnp.broadcast_to(jnp.arange(1.0, 17.0)[:, None], (16, 16))}
    _, state = optimizer.update(gradient, optimizer.init(params), params)
    varies = float(jnp.ptp(getattr(state[0], factor)["w"])) > 1
    assert _factor((16,), (16, 16), factor) == ([0] if varies else [1])


@pytest.mark.parametrize("shape", [(16, 32), (32, 16), (3, 16, 32), (32, 3, 16), (16, 32, 8), (2, 16, 3, 32), (32, 16, 64)])
def test_the_rule_for_factors_agrees_with_their_shapes_where_these_tell(shape):
    state = jax.eval_shape(optax.adafactor(1e-3, min_dim_size_to_factor=8).init, jax.ShapeDtypeStruct(shape, jnp.float32))[0]
    for factor in ("v_row", "v_col"):
        found = getattr(state, factor).shape
        assert _factor(found, shape, factor) == _subsequence(found, shape)
        assert _factor(found[:-1], shape, factor) is None and _factor(found, shape, "mu") is None


def test_a_memory_with_more_dimensions_is_whole_along_these(eight_devices):
    shapes, axes = {"w": (64, 64), "b": (64,)}, {"w": ("fsdp", "tensor"), "b": ("tensor",)}
    specs = _specs(optax.lbfgs(), shapes, eight_devices, axes)
    for memory in ("diff_params_memory", "diff_updates_memory"):
        found = {name.rsplit("/", 1)[1]: spec for name, spec in specs.items() if memory in name}
        assert found == {"w": P(None, "fsdp", "tensor"), "b": P(None, "tensor")}
    assert [spec for name, spec in specs.items() if "weights_memory" in name] == [P()]


def test_each_state_stays_on_the_mesh_of_its_parameter():
    meshes = {"judge": abstract_mesh({"fsdp": 4}, 4), "policy": abstract_mesh({"fsdp": 2, "tensor": 2}, 4)}
    params = {name: jax.ShapeDtypeStruct((256, 128), jnp.float32) for name in meshes}
    shardings = {name: NamedSharding(mesh, P("fsdp")) for name, mesh in meshes.items()}
    state = jax.eval_shape(optax.adafactor(1e-3).init, params)
    on = {name: s.mesh for name, s in named_leaves(optimizer_shardings(state, params, shardings))}
    assert on["0/v_row/judge"] == meshes["judge"] and on["0/v_row/policy"] == meshes["policy"]


def test_parameters_without_shardings_are_named(eight_devices):
    params = {"w": jnp.ones((8, 8)), "b": jnp.ones(8)}
    with pytest.raises(UserError, match="the parameter b has no NamedSharding"):
        optimizer_shardings({"mu": params}, params, {"w": eight_devices.replicated})
    with pytest.raises(UserError, match="params has no arrays"):
        optimizer_shardings({"mu": params}, {}, {})
