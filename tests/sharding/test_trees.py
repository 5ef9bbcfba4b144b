"""Foreign trees: Linen with and without boxes, NNX, dicts and optax states, by annotation and by pattern."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import PartitionSpec

from rlaif_jax.errors import UserError
from rlaif_jax.sharding import (
    Placement,
    axes_by_pattern,
    axes_of,
    coverage,
    named_leaves,
    optimizer_shardings,
    sharded_init,
    spec_for,
)

PATTERNS = [(r"up/kernel", ("embed", "mlp")), (r"down/kernel", ("mlp", "embed")), (r"bias$", ())]


class Boxed(nn.Module):
    """Logical names on one layer, mesh axes on the other."""

    @nn.compact
    def __call__(self, x):
        normal = nn.initializers.normal()
        x = nn.Dense(16, kernel_init=nn.with_logical_partitioning(normal, ("embed", "mlp")), name="up")(x)
        return nn.Dense(8, kernel_init=nn.with_partitioning(normal, ("tensor", "fsdp")), name="down")(x)


class Plain(nn.Module):
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16, kernel_init=self.kernel_init, name="up")(x)
        return nn.Dense(8, kernel_init=self.kernel_init, name="down")(x)


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        normal = nnx.initializers.normal()
        annotated = nnx.with_partitioning(normal, ("embed", "mlp"), eager_sharding=False)
        self.up = nnx.Linear(8, 16, kernel_init=annotated, rngs=rngs)
        self.down = nnx.Linear(16, 8, rngs=rngs)


def _init(module):
    return lambda key: module.init(key, jnp.ones((1, 8)))


def _specs(tree):
    return {name: x.sharding.spec for name, x in named_leaves(tree)}


def test_boxed_linen_keeps_its_boxes(eight_devices):
    params = sharded_init(_init(Boxed()), axes_of, eight_devices, jax.random.key(0))
    assert isinstance(params["params"]["up"]["kernel"], nn.LogicallyPartitioned)
    assert _specs(params) == {
        "params/down/bias": PartitionSpec(), "params/down/kernel": PartitionSpec("tensor", "fsdp"),
        "params/up/bias": PartitionSpec(), "params/up/kernel": PartitionSpec("fsdp", "tensor"),
    }  # fmt: skip
    assert Boxed().apply(nn.meta.unbox(params), jnp.ones((2, 8))).shape == (2, 8)


def test_unboxed_linen_by_pattern(eight_devices):
    axes = partial(axes_by_pattern, PATTERNS)
    params = sharded_init(_init(Plain()), axes, eight_devices, jax.random.key(0))
    assert _specs(params)["params/down/kernel"] == PartitionSpec("tensor", "fsdp")


@pytest.mark.parametrize(("kernel_init", "ulp"), [(nn.initializers.uniform(), 0), (nn.initializers.lecun_normal(), 2)])
def test_the_mesh_draws_no_other_weights(eight_devices, kernel_init, ulp):
    """Random bits are the same on every mesh. What a normal makes of them (erf_inv) may differ in the last bits with the
    shape of a part: XLA's CPU backend of jax 0.12 computes what is left over of a vector by other instructions."""
    axes, init = partial(axes_by_pattern, PATTERNS), _init(Plain(kernel_init))
    one = Placement(jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tensor")))
    params, same = (sharded_init(init, axes, place, jax.random.key(0)) for place in (eight_devices, one))
    jax.tree.map(partial(np.testing.assert_array_max_ulp, maxulp=ulp), params, same)


def test_nnx_state(eight_devices):
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Nnx(nnx.Rngs(0))))

    def init():
        return nnx.split(Nnx(nnx.Rngs(0)))[1]

    state = sharded_init(init, axes_of, eight_devices)
    assert _specs(state) == {
        "down/bias": PartitionSpec(), "down/kernel": PartitionSpec(), "up/bias": PartitionSpec(),
        "up/kernel": PartitionSpec("fsdp", "tensor"),
    }  # fmt: skip
    assert jax.tree.structure(axes_by_pattern([(".*", ())], abstract)).num_leaves == 0, "() has no leaves of its own"
    model = nnx.merge(graph, state)
    assert model.down.kernel[...].shape == (16, 8)


def test_coverage_lists_what_nothing_matches_and_which_patterns_match_nothing():
    tree = {"up": {"kernel": jnp.ones((8, 16)), "scale": jnp.ones(8)}}
    found = coverage([("kernel", ("embed", "mlp")), ("up/kernel", ("mlp", None)), ("router", ())], tree)
    assert found.matched == {"up/kernel": "kernel"}
    assert found.unmatched == ["up/scale"] and found.unused == ["up/kernel", "router"]
    assert "up/scale: NO PATTERN" in str(found) and "'router' is used by no parameter" in str(found)
    with pytest.raises(UserError, match="up/scale"):
        axes_by_pattern([("kernel", ("embed", "mlp"))], tree)


def test_patterns_fit_the_rank_or_say_so():
    tree = {"stack": {"kernel": jnp.ones((3, 8, 16))}}
    axes = axes_by_pattern([("kernel", (..., "embed", "mlp"))], tree)
    assert axes == {"stack": {"kernel": (None, "embed", "mlp")}}
    with pytest.raises(UserError, match=r"stack/kernel.*\(3, 8, 16\)"):
        axes_by_pattern([("kernel", ("embed", "mlp"))], tree)


def test_an_annotation_of_another_rank_is_refused():
    box = nn.Partitioned(jax.ShapeDtypeStruct((4, 4), jnp.float32), ("fsdp",))
    with pytest.raises(UserError, match="w: annotated"):
        axes_of({"w": box})


def test_a_mesh_axis_is_used_once_and_names_of_mesh_axes_are_axes():
    sizes, rules = {"fsdp": 2, "tensor": 2}, {"embed": ("fsdp",), "mlp": ("fsdp", "tensor")}
    spec, repairs = spec_for(("embed", "mlp"), (4, 8), sizes, rules, "kernel")
    assert spec == PartitionSpec("fsdp") and "cannot use fsdp a second time" in str(repairs[0])
    assert spec_for(("tensor", ("embed",)), (4, 8), sizes, rules)[0] == PartitionSpec("tensor", "fsdp")
    with pytest.raises(ValueError, match=r"kernel: 1 axes"):
        spec_for(("embed",), (4, 8), sizes, rules, "kernel")


PARAMS = {"layers": {"q": jnp.ones((2, 8, 16)), "bias": jnp.ones(16)}, "square": jnp.ones((64, 64)), "frozen": jnp.ones((8, 4))}
AXES = {"layers": {"q": ("layers", "embed", "heads"), "bias": ("heads",)}, "square": ("embed", "mlp"), "frozen": ("embed", None)}


def _opt_specs(optimizer, place) -> dict[str, PartitionSpec]:
    state = jax.eval_shape(optimizer.init, PARAMS)
    shardings = optimizer_shardings(state, PARAMS, place.tree(AXES, PARAMS))
    placed = jax.jit(optimizer.init, out_shardings=shardings)(PARAMS)  # every spec must be one that JAX accepts
    return _specs(placed)


def test_adam_moments_lie_with_their_parameters(eight_devices):
    specs = _opt_specs(optax.adam(1e-3), eight_devices)
    for moment in ("mu", "nu"):
        assert specs[f"0/{moment}/layers/q"] == PartitionSpec(None, "fsdp", "tensor")
        assert specs[f"0/{moment}/layers/bias"] == PartitionSpec("tensor")
    assert specs["0/count"] == PartitionSpec()


def test_factors_of_adafactor_keep_the_axes_they_have(eight_devices):
    specs = _opt_specs(optax.adafactor(1e-3, min_dim_size_to_factor=8), eight_devices)
    by_end = {name.split("/", 1)[1]: spec for name, spec in specs.items()}
    rows, columns = by_end["v_row/layers/q"], by_end["v_col/layers/q"]
    assert {rows, columns} == {PartitionSpec(None, "fsdp"), PartitionSpec(None, "tensor")}
    assert by_end["v_row/square"] == PartitionSpec("fsdp")
    assert by_end["v/layers/bias"] == PartitionSpec("tensor")
    assert by_end["v/square"] == PartitionSpec(), "a placeholder of one element"


def test_scales_of_blocks_keep_the_axes_that_still_divide(eight_devices):
    scales = {"layers": {"q": jnp.ones((2, 4, 16)), "bias": jnp.ones(3)}, "square": jnp.ones((64, 1)), "frozen": jnp.ones((8, 4))}
    shardings = optimizer_shardings({"scale": scales}, PARAMS, eight_devices.tree(AXES, PARAMS))
    assert {name: s.spec for name, s in named_leaves(shardings)} == {
        "scale/layers/q": PartitionSpec(None, "fsdp", "tensor"), "scale/layers/bias": PartitionSpec(),
        "scale/square": PartitionSpec("fsdp"), "scale/frozen": PartitionSpec("fsdp"),
    }  # fmt: skip


def test_masked_partitioned_and_wrapped_states_are_found(eight_devices):
    labels = {"layers": {"q": "adam", "bias": "adam"}, "square": "adam", "frozen": "none"}
    parts = optax.multi_transform({"adam": optax.adam(1e-3), "none": optax.set_to_zero()}, labels)
    optimizer = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1.0), parts), every_k_schedule=2)
    specs = _opt_specs(optimizer, eight_devices)
    q = [spec for name, spec in specs.items() if name.endswith("layers/q")]
    assert len(q) == 3 and set(q) == {PartitionSpec(None, "fsdp", "tensor")}, "mu, nu and the accumulated gradient"
    assert [s for n, s in specs.items() if n.endswith("frozen")] == [PartitionSpec("fsdp")]


def test_the_state_of_an_nnx_optimizer(eight_devices):
    def build():
        return nnx.state(nnx.Optimizer(Nnx(nnx.Rngs(0)), optax.adam(1e-3), wrt=nnx.Param))

    params = nnx.state(nnx.eval_shape(lambda: Nnx(nnx.Rngs(0))), nnx.Param)
    abstract = jax.eval_shape(build)
    shardings = optimizer_shardings(abstract, params, eight_devices.tree(axes_of(params), params))
    specs = {name: s.spec for name, s in named_leaves(shardings)}
    assert specs["opt_state/0/mu/up/kernel"] == PartitionSpec("fsdp", "tensor")
    assert specs["opt_state/0/count"] == PartitionSpec()
