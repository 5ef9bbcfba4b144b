"""What a user of the sharding utilities alone meets first: typos, odd batches, arrays on one device, small models."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlaif_jax.errors import UserError
from rlaif_jax.sharding import Placement, describe, estimate, global_batch, host_rows, make_mesh, spec_for


@pytest.fixture(scope="module")
def place():
    rules = {"batch": ("data", "fsdp"), "embed": "fsdp", "mlp": "tensor"}
    return Placement.of(make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), rules)


def test_rows_that_do_not_divide_are_copied_with_a_warning(place):
    with pytest.warns(UserWarning, match=r"x: 3 rows are no multiple of the 4 row shards"):
        batch = global_batch({"x": np.zeros((3, 2), np.float32)}, place)
    assert batch["x"].sharding.is_fully_replicated
    with pytest.warns(UserWarning, match=r"host_rows: 3 rows"):
        assert list(host_rows(place, 3)) == [0, 1, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not global_batch({"x": np.zeros((8, 2), np.float32)}, place)["x"].sharding.is_fully_replicated


def test_a_mistyped_mesh_axis_is_refused(place):
    with pytest.raises(UserError, match=r"without: there is no mesh axis 'tensr'; there are data, fsdp, tensor"):
        place.without("tensr")
    assert place.without("tensor").rules["mlp"] == ()


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [(("embd",), (4,), "w: no rule for logical axis 'embd'; known: batch, embed, mlp, data, fsdp, tensor"),
     (("embed",), (4, 4), r"w: 1 axes \('embed',\) for an array of shape \(4, 4\)"), (None, (4,), "w: 0 axes")],
)  # fmt: skip
def test_wrong_axes_are_mistakes_of_the_user_like_wrong_meshes(place, axes, shape, message):
    with pytest.raises(UserError, match=message):
        spec_for(axes, shape, place.sizes, place.rules, "w")
    with pytest.raises(UserError):
        place.tree({"w": axes}, {"w": jax.ShapeDtypeStruct(shape, jnp.float32)})


def test_a_leaf_on_one_device_is_listed_beside_the_mesh(place):
    tree = {"w": jax.device_put(np.ones((8, 4), np.float32), place.rows(8)), "count": jnp.zeros((), jnp.int32)}
    lines = {line.name: line for line in describe(tree).lines}
    assert lines["count"].part == () and lines["w"].part == (2, 4)
    text = str(describe(tree))
    assert "mesh 1 (device 1; devices 0)" in text and "mesh 2 (data 2, fsdp 2, tensor 2; devices 0-7)" in text


def test_the_memory_of_a_small_model_is_not_zero(place):
    shape = {"w": jax.ShapeDtypeStruct((64, 32), jnp.float32)}
    text = str(estimate({"w": ("embed", "mlp")}, shape, place, optax.adamw(1e-3)))
    assert text.startswith("parameters 2.0 KiB, gradients 2.0 KiB, optimizer 4.0 KiB") and "0.0" not in text
    assert "bytes" in str(estimate({"w": ("embed", "mlp")}, {"w": jax.ShapeDtypeStruct((4, 4), jnp.float32)}, place))
