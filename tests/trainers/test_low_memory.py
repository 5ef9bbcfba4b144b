"""Optimisers that keep less: right on average, as good as AdamW on a small problem, and as small as they claim."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlaif_jax.errors import UserError
from rlaif_jax.models import transformer
from rlaif_jax.sharding import MeshConfig, Placement, make_mesh
from rlaif_jax.trainers.low_memory import scale_by_adam, stochastic_round
from rlaif_jax.trainers.optimizer import OptimizerConfig, make_optimizer
from rlaif_jax.trainers.sft import sft_loss
from rlaif_jax.trainers.update import make_update
from tests.trainers.states import create_state

OPTIONS = {
    "moments": ("float32", OptimizerConfig(3e-3, moments="bfloat16")),
    "int8": ("float32", OptimizerConfig(3e-3, moments="int8")),
    "factored": ("float32", OptimizerConfig(3e-3, moments="factored")),
    "masters": ("bfloat16", OptimizerConfig(3e-3)),
    "masters and moments": ("bfloat16", OptimizerConfig(3e-3, moments="bfloat16")),
    "masters and int8": ("bfloat16", OptimizerConfig(3e-3, moments="int8")),
    "rounding": ("bfloat16", OptimizerConfig(3e-3, moments="bfloat16", masters=False)),
}
BYTES = {
    "moments": 4, "int8": 2.25, "factored": 2, "masters": 12, "masters and moments": 8, "masters and int8": 6.25, "rounding": 4,
}  # fmt: skip  # of state per parameter


def test_stochastic_rounding_is_right_on_average():
    x = jnp.concatenate([jnp.array([1.0 + 2.0**-10, -3.3, 1e-20, 0.0]), jax.random.normal(jax.random.key(0), (4,))])
    many = jax.vmap(lambda k: stochastic_round(x, k))(jax.random.split(jax.random.key(1), 4000)).astype(jnp.float32)
    spacing = jnp.abs(x) * 2.0**-7
    assert bool(jnp.all(jnp.abs(many.mean(0) - x) <= 4 * spacing / 4000**0.5))
    assert bool(jnp.all(jnp.abs(many - x) <= spacing)) and float(many[:, 3].max()) == 0.0
    assert len(np.unique(np.asarray(many[:, 0]))) == 2
    special = jnp.array([jnp.inf, -jnp.inf, jnp.nan])
    np.testing.assert_array_equal(stochastic_round(special, jax.random.key(2)).astype(jnp.float32), special)
    exact = jnp.array([1.5, -2.0])
    np.testing.assert_array_equal(stochastic_round(exact, jax.random.key(3)).astype(jnp.float32), exact)


def test_moments_in_bfloat16_follow_adams():
    params, rng = {"w": jnp.zeros(400)}, np.random.default_rng(0)
    ours, theirs = scale_by_adam(0.9, 0.999, 1e-8), optax.scale_by_adam(0.9, 0.999, 1e-8)
    a, b = ours.init(params), theirs.init(params)
    for _ in range(300):  # the second moment moves by a thousandth each time: nearest rounding would leave it at 0
        grads = {"w": jnp.array(0.1 + rng.normal(size=400), jnp.float32)}
        (u, a), (v, b) = ours.update(grads, a), theirs.update(grads, b)
    assert a.mu["w"].dtype == a.nu["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(a.nu["w"].astype(jnp.float32).mean(), b.nu["w"].mean(), rtol=0.01)
    assert float(jnp.corrcoef(u["w"], v["w"])[0, 1]) > 0.99
    again = ours.init(params)
    for _ in range(2):
        first, again = ours.update(grads, again)
    other = ours.update(grads, ours.update(grads, ours.init(params))[1])[0]
    np.testing.assert_array_equal(first["w"], other["w"]), "the same steps, the same rounding"


def _train(cfg, place, optimizer, steps=60):
    optimizer = make_optimizer(dataclasses.replace(optimizer, schedule="constant", weight_decay=0.0), steps)
    state, shardings = create_state(
        lambda: transformer.init(cfg, jax.random.key(0)), transformer.logical_axes(cfg), optimizer, place
    )
    update = make_update(lambda p, b: sft_loss(p, b, cfg), optimizer, shardings)
    tokens = np.random.default_rng(0).integers(1, 128, (8, 12)).astype(np.int32)
    batch = {
        "tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": np.tile(np.arange(12, dtype=np.int32), (8, 1)),
        "loss_mask": np.ones((8, 12), np.float32),
    }  # fmt: skip
    losses = []
    for _ in range(steps):
        state, metrics = update(state, batch)
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.parametrize("name", [n if n in ("masters", "factored") else pytest.param(n, marks=pytest.mark.slow) for n in OPTIONS])
def test_every_option_learns_like_adamw(small_model, one_device, name):
    dtype, optimizer = OPTIONS[name]
    _, exact = _train(small_model, one_device, OptimizerConfig(3e-3))
    state, losses = _train(dataclasses.replace(small_model, param_dtype=dtype), one_device, optimizer)
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {dtype}
    assert exact[-1] < 0.8 * exact[0]
    assert losses[0] == pytest.approx(exact[0], rel=0.01)
    assert abs(losses[-1] - exact[-1]) < 0.12 * (exact[0] - exact[-1]) or losses[-1] < exact[-1], (losses[-1], exact[-1])


@pytest.mark.slow
def test_small_updates_of_bfloat16_are_not_lost(small_model, one_device):
    """At 1e-6 no update reaches half of a weight's spacing: with neither masters nor rounding nothing would change.

    40 of them together reach it for weights below 2^-6 (spacing 6e-5) where masters keep them; rounding moves fewer.
    """
    cfg = dataclasses.replace(small_model, param_dtype="bfloat16")
    start = transformer.init(cfg, jax.random.key(0))["layers"]["gate"].astype(jnp.float32)
    for masters in (True, False):
        state, _ = _train(cfg, one_device, OptimizerConfig(1e-6, masters=masters), steps=40)
        moved = state.params["layers"]["gate"].astype(jnp.float32) - start
        share = float(jnp.mean(moved != 0))
        within_reach = float(jnp.mean(jnp.abs(start) < 2**-6))
        assert share == pytest.approx(within_reach, abs=0.01) if masters else 0 < share < 0.5
        assert float(jnp.abs(moved.mean())) < 40e-6


@pytest.mark.parametrize("name", OPTIONS)
def test_states_are_as_small_as_they_claim_and_lie_sharded(name):
    dtype, config = OPTIONS[name]
    place = Placement(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8]))
    axes = {"q": ("layers", "embed", "heads"), "q_norm": ("layers", "norm")}
    shapes = {"q": (4, 256, 512), "q_norm": (4, 256)}
    state, shardings = create_state(
        lambda: {n: jnp.ones(s, dtype) for n, s in shapes.items()}, axes, make_optimizer(config, 10), place
    )
    count = sum(np.prod(s) for s in shapes.values())
    held = sum(x.nbytes for x in jax.tree.leaves(state.opt_state))
    assert BYTES[name] * count <= held < (BYTES[name] + 0.05) * count
    on_one = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state.opt_state))
    assert on_one < 0.27 * held, "split over fsdp and tensor"
    assert jax.tree.map(lambda x: x.sharding, state.opt_state) == shardings.opt_state


def test_an_unknown_kind_is_named():
    with pytest.raises(UserError, match=r"optimizer\.moments is 'int4'"):
        OptimizerConfig(moments="int4")
