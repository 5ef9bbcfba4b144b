"""Tables, pictures and estimates of who holds what."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from rich.console import Console

from rlaif_jax.errors import UserError
from rlaif_jax.models import transformer
from rlaif_jax.models.model_config import PRESETS
from rlaif_jax.sharding import MeshConfig, Placement, Repair, abstract_mesh, describe, draw, estimate, sharded_bytes
from rlaif_jax.sharding.picture import held_parts
from rlaif_jax.sharding.text import shorten, width

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
    assert "size 3 is not divisible" in odd.note and odd.part == (3, 16)
    text = str(table)
    assert "tensor, fsdp" in text and "replicated" in text and "mesh data 2, fsdp 2, tensor 2" in text
    assert table.device_bytes == sharded_bytes(TREE, shardings)
    console = Console(width=200, file=io.StringIO())
    console.print(table.rich())
    assert "tensor, fsdp" in console.file.getvalue()


def test_arrays_that_lie_somewhere_describe_themselves(eight_devices):
    placed = jax.device_put(np.ones((8, 4), np.float32), eight_devices.rows(8))
    assert describe({"x": placed}).lines[0].part == (2, 4)
    with pytest.raises(UserError, match="x is not on a mesh"):
        describe({"x": jnp.ones(3)})
    with pytest.raises(UserError, match="has no arrays"):
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


def _beside(devices):
    """A policy on all eight devices, a judge on the last four, and one more on all in another order."""
    meshes = {
        "policy": Mesh(np.array(devices).reshape(4, 2), ("fsdp", "tensor")),
        "judge": Mesh(np.array(devices[4:]).reshape(2, 2), ("fsdp", "tensor")),
        "turned": Mesh(np.array(devices[::-1]).reshape(4, 2), ("fsdp", "tensor")),
    }
    tree = {name: jax.ShapeDtypeStruct((8, 4), jnp.float32) for name in meshes}
    return tree, {name: NamedSharding(mesh, PartitionSpec("fsdp", "tensor")) for name, mesh in meshes.items()}


def test_a_tree_on_several_meshes_has_a_title_for_each_and_sums_per_device():
    tree, shardings = _beside(jax.devices())
    table = describe(tree, shardings)
    assert str(table).splitlines()[:4] == [
        "mesh 1 (fsdp 2, tensor 2; devices 4-7): 128 bytes in all, 32 on one device",
        "mesh 2 (fsdp 4, tensor 2; devices 0-7): 128 bytes in all, 16 on one device",
        "mesh 3 (fsdp 4, tensor 2; devices 7, 6, 5, 4, 3, 2, …): 128 bytes in all, 16 on one device",
        "together: 384 bytes in all, at most 64 on one device",
    ]
    assert [row.split()[5] for row in str(table).splitlines()[5:]] == ["1", "2", "3"], "the column of the mesh"
    assert table.device_bytes == 64 == sharded_bytes(tree, shardings) and len(table.meshes) == 3
    del tree["judge"], shardings["judge"]
    assert describe(tree, shardings).device_bytes == 32 == sharded_bytes(tree, shardings)


def test_disjoint_meshes_share_no_device_and_abstract_ones_may():
    tree = {"a": jax.ShapeDtypeStruct((8, 4), jnp.float32), "b": jax.ShapeDtypeStruct((16, 4), jnp.float32)}
    halves = [Mesh(np.array(part), ("fsdp",)) for part in np.split(np.array(jax.devices()), 2)]
    shardings = {name: NamedSharding(mesh, PartitionSpec("fsdp")) for name, mesh in zip("ab", halves, strict=True)}
    assert describe(tree, shardings).device_bytes == sharded_bytes(tree, shardings) == 64
    abstract = {"a": abstract_mesh({"fsdp": 4}, 4), "b": abstract_mesh({"fsdp": 2, "tensor": 2}, 4)}
    shardings = {name: NamedSharding(mesh, PartitionSpec("fsdp")) for name, mesh in abstract.items()}
    table = describe(tree, shardings)
    assert table.device_bytes == sharded_bytes(tree, shardings) == 32 + 128
    assert "at most 160 on one device if abstract meshes share their devices" in str(table)


def test_meshes_that_differ_in_the_types_of_their_axes_alone_are_one():
    mesh = Mesh(np.array(jax.devices()), ("fsdp",))
    explicit = Mesh(np.array(jax.devices()), ("fsdp",), axis_types=(AxisType.Explicit,))
    tree = {"a": jax.ShapeDtypeStruct((8,), jnp.float32), "b": jax.ShapeDtypeStruct((8,), jnp.float32)}
    shardings = {"a": NamedSharding(mesh, PartitionSpec("fsdp")), "b": NamedSharding(explicit, PartitionSpec("fsdp"))}
    assert str(describe(tree, shardings)).startswith("mesh fsdp 8: 64 bytes in all, 8 on one device\n")


def _rich(table) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(table.rich())
    return console.file.getvalue()


def test_names_are_data_for_a_rich_console(eight_devices):
    tree = {name: jax.ShapeDtypeStruct((8,), jnp.float32) for name in ("w[red]x", "w[/bold]")}
    lost = Repair("[/lost]", 0, 8, ("fsdp",))
    shown = _rich(describe(tree, jax.tree.map(lambda _: eight_devices.replicated, tree), [lost]))
    assert "w[red]x" in shown and "w[/bold]" in shown and "not in this table: [/lost]" in shown
    mesh = Mesh(np.array(jax.devices()), ("[red]fsdp",))
    assert "mesh [red]fsdp 8" in _rich(describe({"w": tree["w[red]x"]}, {"w": NamedSharding(mesh, PartitionSpec())}))


def test_rows_are_aligned_and_whole_with_wide_and_invisible_characters(eight_devices):
    tree = {name: jax.ShapeDtypeStruct((8,), jnp.float32) for name in ("权重" * 9, "e\u0301", "two\nlines", "\x1b[31mred", "plain")}
    table = describe(tree, jax.tree.map(lambda _: eight_devices.replicated, tree))
    rows = str(table).splitlines()[1:]
    assert len(rows) == 1 + len(tree)
    starts = {width(row[: row.index(word)]) for row, word in zip(rows, ["dtype"] + ["float32"] * len(tree), strict=True)}
    assert len(starts) == 1, "dtypes stand below each other"
    assert "two\\nlines" in str(table) and "\\x1b[31mred" in str(table) and "\x1b" not in _rich(table)


def test_repairs_that_find_no_line_are_listed_below(eight_devices):
    repairs = eight_devices.repairs(AXES, TREE)
    tree = {"params": TREE}
    table = describe(tree, {"params": eight_devices.tree(AXES, TREE)}, repairs)
    assert [line.note for line in table.lines] == ["", "", ""] and table.unmatched == tuple(repairs)
    below = str(table).splitlines()[-1]
    assert below.startswith("not in this table: odd: dimension 0 of size 3 is not divisible")
    assert "not in this table: odd" in _rich(table)


def test_a_repair_whose_name_two_arrays_share_is_refused(eight_devices):
    x = jax.ShapeDtypeStruct((3, 32), jnp.float32)
    tree, axes = {"a/b": x, "a": {"b": x}}, {"a/b": AXES["odd"], "a": {"b": AXES["odd"]}}
    shardings = eight_devices.tree(axes, tree)
    assert [line.name for line in describe(tree, shardings).lines] == ["a/b", "a/b"]
    with pytest.raises(UserError, match="more than one array is called a/b"):
        describe(tree, shardings, eight_devices.repairs(axes, tree))


def test_a_leaf_that_is_no_array_is_named(eight_devices):
    with pytest.raises(UserError, match="scale is a float; pass an array"):
        describe({"scale": 2.0}, {"scale": eight_devices.replicated})


@pytest.mark.parametrize("text", ["short", "layers/0/attention/kernel" * 20, "权重" * 100, "a权" * 50])
def test_long_names_lose_their_middle(text):
    found = shorten(text, 30)
    if width(text) <= 30:
        assert found == text
    else:
        head, tail = found.split("…")
        assert text.startswith(head) and text.endswith(tail) and 28 <= width(found) <= 30
        assert abs(width(head) - width(tail)) <= 2
