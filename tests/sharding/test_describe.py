"""Tables, pictures and estimates of who holds what."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from rlaif_jax.errors import UserError
from rlaif_jax.models import transformer
from rlaif_jax.models.model_config import PRESETS
from rlaif_jax.sharding import MeshConfig, Placement, abstract_mesh, describe, draw, estimate, sharded_bytes
from rlaif_jax.sharding.picture import held_parts

AXES = {"embed": ("vocab", "embed"), "norm": ("norm",), "odd": ("mlp", "embed")}
TREE = {
    "embed": jax.ShapeDtypeStruct((64, 32), jnp.float32), "norm": jax.ShapeDtypeStruct((32,), jnp.bfloat16),
    "odd": jax.ShapeDtypeStruct((3, 32), jnp.float32),
}  # fmt: skip


def test_the_table_names_parts_bytes_and_repairs(eight_devices):
    shardings = eight_devices.tree(AXES, TREE)
    table = describe(TREE, shardings, eight_devices.repairs(AXES, TREE))
    embed, norm, odd = table.lines
    assert embed.part == (32, 16) and embed.device_size == 32 * 16 * 4
    assert norm.part == (32,) and norm.size == norm.device_size == 64
    assert "size 3 does not divide" in odd.note and odd.part == (3, 16)
    text = str(table)
    assert "tensor, fsdp" in text and "whole" in text and "mesh data 2, fsdp 2, tensor 2" in text
    assert table.device_bytes == sharded_bytes(TREE, shardings)
    console = Console(width=200, file=io.StringIO())
    console.print(table.rich())
    assert "tensor, fsdp" in console.file.getvalue()


def test_arrays_that_lie_somewhere_describe_themselves(eight_devices):
    placed = jax.device_put(np.ones((8, 4), np.float32), eight_devices.rows(8))
    assert describe({"x": placed}).lines[0].part == (2, 4)
    with pytest.raises(UserError, match="x lies on no mesh"):
        describe({"x": jnp.ones(3)})
    with pytest.raises(UserError, match="holds no array"):
        describe({})


@pytest.mark.parametrize("axes", [("vocab", "embed"), ("batch", None), (None, "heads"), ("norm", None)])
def test_the_parts_in_the_picture_are_those_that_jax_places(eight_devices, axes):
    sharding = eight_devices.array(axes, (8, 8))
    numbers, count = held_parts(sharding, 2)
    by_device = sharding.devices_indices_map((8, 8))
    starts = [[s.start or 0 for s in by_device[d]] for d in eight_devices.mesh.devices.flat]
    order = sorted(set(map(tuple, starts)))
    assert count == len(order)
    assert list(numbers) == [order.index(tuple(s)) for s in starts], "numbered in row-major order"


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_pictures_are_drawn(eight_devices, tmp_path, suffix):
    path = draw(tmp_path / f"who.{suffix}", TREE, eight_devices.tree(AXES, TREE), "who holds what")
    head = path.read_bytes()[:400]
    assert head.startswith(b"\x89PNG") if suffix == "png" else b"<?xml" in head
    assert path.stat().st_size > 5000


def test_pictures_that_cannot_be_read_are_refused(tmp_path, eight_devices):
    place = Placement(abstract_mesh(MeshConfig(data=-1), 128))
    with pytest.raises(UserError, match="128 devices"):
        draw(tmp_path / "who.png", TREE, place.tree(AXES, TREE))
    with pytest.raises(UserError, match=r"who.pdf.*png or .svg"):
        draw(tmp_path / "who.pdf", TREE, eight_devices.tree(AXES, TREE))


def test_the_estimate_of_72b_on_a_pod_is_the_sum_of_its_parts():
    cfg = PRESETS["qwen2.5-72b"]
    abstract = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))
    axes = transformer.logical_axes(cfg)
    place = Placement(abstract_mesh(MeshConfig(data=2, fsdp=32, tensor=4), 256))
    memory = estimate(axes, abstract, place, optax.adamw(1e-3))
    total = sum(x.size * 4 for x in jax.tree.leaves(abstract))
    assert total / 128 <= memory.parameters < 1.02 * total / 128, "all but the norms lie over fsdp x tensor"
    assert memory.gradients == memory.parameters
    assert memory.optimizer == 2 * memory.parameters + 4, "two moments and a count"
    assert memory.total == 4 * memory.parameters + 4 and "total" in str(memory)
    small = estimate(axes, abstract, place, optax.adafactor(1e-3))
    assert small.optimizer < memory.optimizer / 50
    assert estimate(axes, abstract, place).total == memory.parameters
