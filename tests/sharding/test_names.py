"""Names of leaves, and patterns over them: fields called "value", keys with slashes, axes of a wrong form."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx, struct
from jax.sharding import PartitionSpec

from rlaif_jax.errors import UserError
from rlaif_jax.sharding import axes_by_pattern, axes_of, coverage, gather_each, named_leaves, optimizer_shardings, shard


class Qkv(NamedTuple):
    query: object
    key: object
    value: object


@struct.dataclass
class Struct:
    value: object
    other: object


@struct.dataclass
class Scaled:
    """A box with something beside its value."""

    value: object
    scale: object
    names: tuple = struct.field(pytree_node=False, default=())

    def unbox(self):
        return self.value


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Dataclass:
    value: object
    other: object


def _arrays(n, shape=(8, 4)):
    return [jax.ShapeDtypeStruct(shape, jnp.float32)] * n


def _names(tree):
    return [name for name, _ in named_leaves(tree)]


@pytest.mark.parametrize("kind", [Struct, Dataclass])
def test_a_field_that_is_really_called_value_keeps_its_name(kind):
    assert _names({"attn": Qkv(*_arrays(3))}) == ["attn/query", "attn/key", "attn/value"]
    assert _names({"m": kind(*_arrays(2))}) == ["m/value", "m/other"]
    assert _names({"m": kind(Qkv(*_arrays(3)), None)})[-1] == "m/value/value"


def test_the_value_of_a_box_is_left_out_at_any_depth():
    box = nn.Partitioned(_arrays(1)[0], ("fsdp", None))
    assert _names({"w": box}) == ["w"]
    assert _names(Qkv(*[box] * 3)) == ["query", "key", "value"]
    assert _names({"w": nn.Partitioned(Qkv(*_arrays(3)), (None,))}) == ["w/query", "w/key", "w/value"]
    assert _names({"w": Scaled(*_arrays(2))}) == ["w", "w/scale"]
    state = nnx.state(nnx.Dict(value=nnx.Param(jnp.ones(3)), other=nnx.Param(jnp.ones(3))))
    assert _names(state) == ["other", "value"]


def test_a_pattern_finds_the_field_value_and_an_annotation_error_names_it():
    tree = {"attn": Qkv(*_arrays(3))}
    found = axes_by_pattern([("attn/(query|key|value)$", ("embed", None))], tree)
    assert found == {"attn": Qkv(*[("embed", None)] * 3)}
    with pytest.raises(UserError, match=r"attn/value: annotated"):
        axes_of({"attn": Qkv(*_arrays(2), nn.Partitioned(_arrays(1)[0], ("fsdp",)))})


def test_the_moments_of_a_field_value_lie_with_it(eight_devices):
    params = {"attn": Qkv(*_arrays(3)), "value": _arrays(1)[0]}
    axes = {"attn": Qkv(("embed", None), (None, "heads"), ("heads", "embed")), "value": (None, None)}
    shardings = optimizer_shardings({"mu": params}, params, eight_devices.tree(axes, params))
    assert {name: s.spec for name, s in named_leaves(shardings)} == {
        "mu/attn/query": PartitionSpec("fsdp"), "mu/attn/key": PartitionSpec(None, "tensor"),
        "mu/attn/value": PartitionSpec("tensor", "fsdp"), "mu/value": PartitionSpec(),
    }  # fmt: skip


def test_names_that_two_arrays_share_are_refused():
    tree = {"a/b": _arrays(1)[0], "a": {"b": _arrays(1)[0]}, "c": _arrays(1)[0]}
    with pytest.raises(UserError, match=r"more than one array is called a/b .*rename"):
        coverage([(".*", ())], tree)
    with pytest.raises(UserError, match=r"more than one array is called a/b"):
        axes_by_pattern([(".*", ())], tree)


@pytest.mark.parametrize("axes", [..., None, "em", ("embed", ...), ("embed", 1), {"embed": 0}, 3])
def test_axes_of_a_wrong_form_name_their_pattern_and_what_is_expected(axes):
    with pytest.raises(UserError, match=r"pattern 'w\$' gives the axes .*expected a tuple with an entry for each dimension"):
        axes_by_pattern([("w$", axes)], {"w": jnp.ones((8, 4))})


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (PartitionSpec("fsdp", "tensor"), ("fsdp", "tensor")), (PartitionSpec(), (None, None)), ([], (None, None)),
        (["embed", None], ("embed", None)), ((...,), (None, None)), (((), ("fsdp", "tensor")), ((), ("fsdp", "tensor"))),
    ],
)  # fmt: skip
def test_other_sequences_are_axes_as_well(axes, expected):
    assert axes_by_pattern([("w$", axes)], {"w": jnp.ones((8, 4))}) == {"w": expected}


@pytest.mark.parametrize("pattern", ["(up", "*", 3])
def test_a_pattern_that_is_no_regular_expression_is_named(pattern):
    for call in (coverage, axes_by_pattern):
        with pytest.raises(UserError, match=r"pattern .* is not a valid regular expression"):
            call([("w", (None,)), (pattern, ())], {"w": jnp.ones(3)})


def test_a_python_number_has_no_dimension():
    tree = {"w": jnp.ones((8, 4)), "scale": 2.0}
    assert axes_by_pattern([("w", ("embed", None)), (".*", ())], tree) == {"w": ("embed", None), "scale": ()}
    assert axes_of(tree) == {"w": (None, None), "scale": ()}
    with pytest.raises(UserError, match=r"gives \('embed',\) to scale, whose shape is \(\)"):
        axes_by_pattern([(".*", ("embed",))], {"scale": 2.0})


def test_placements_and_movers_use_the_same_names(eight_devices):
    tree = {"attn": Qkv(*[jnp.ones((6, 8))] * 3)}
    axes = {"attn": Qkv(*[("mlp", None), ("mlp", None), (("data", "fsdp"), None)])}
    assert [r.name for r in eight_devices.repairs(axes, tree)] == ["attn/value"]
    placed = shard(jax.tree.map(np.asarray, tree), eight_devices.tree(axes, tree))
    assert [name for name, _ in gather_each(placed)] == ["attn/query", "attn/key", "attn/value"]
    with pytest.raises(UserError, match="attn/value"):
        odd = {"attn": Qkv(np.ones((6, 8)), np.ones((6, 8)), np.ones((7, 8)))}
        shard(odd, eight_devices.tree({"attn": Qkv(*[("mlp", None)] * 3)}, tree))
