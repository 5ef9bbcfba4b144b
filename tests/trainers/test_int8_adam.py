"""Adam in 8 bits: codes that are right on average, blocks that no sharding splits, and runs that go on where they were."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlaif_jax.models import transformer
from rlaif_jax.models.model_config import preset
from rlaif_jax.plan.hlo import collectives
from rlaif_jax.sharding import MeshConfig, Placement, abstract_mesh, global_batch
from rlaif_jax.sharding.optimizer import optimizer_shardings
from rlaif_jax.sharding.placement import abstract_like
from rlaif_jax.trainers import int8_adam
from rlaif_jax.trainers.checkpoint import Checkpoints
from rlaif_jax.trainers.optimizer import OptimizerConfig, make_optimizer
from rlaif_jax.trainers.sft import sft_loss
from rlaif_jax.trainers.update import make_update
from tests.trainers.states import create_state

CODES = {"first": (int8_adam.encode_first, int8_adam.decode_first), "second": (int8_adam.encode_second, int8_adam.decode_second)}
BLOCK = (-2, 16)


def _moments(kind: str) -> jax.Array:
    """(2, 32, 8) over seven decades; one block is zero and one has a single number."""
    x = 10.0 ** jax.random.uniform(jax.random.key(0), (2, 32, 8), minval=-7.0, maxval=0.0)
    x = x.at[0, :16, 0].set(0.0).at[0, 16:, 1].set(0.0).at[0, 20, 1].set(3e-20)
    return x * jnp.sign(jax.random.normal(jax.random.key(1), x.shape)) if kind == "first" else x


@pytest.mark.parametrize("kind", CODES)
def test_codes_are_right_on_average_and_near(kind):
    (encode, decode), x = CODES[kind], _moments(kind)
    codes, scale = jax.vmap(lambda k: encode(x, BLOCK, k))(jax.random.split(jax.random.key(2), 3000))
    assert codes.dtype == (jnp.int8 if kind == "first" else jnp.uint8) and scale.dtype == jnp.bfloat16
    assert scale.shape[1:] == int8_adam.scale_shape(x.shape, *BLOCK) == (2, 2, 8)
    largest = jnp.repeat(scale[0].astype(jnp.float32), 16, axis=-2)
    assert bool(jnp.all(largest >= jnp.abs(x))), "rounded up"
    values = jax.vmap(lambda c, s: decode(c, s, BLOCK))(codes, scale)
    power, levels = (3, 127) if kind == "first" else (6, 256)
    step = largest * ((jnp.abs(x / jnp.where(largest > 0, largest, 1)) ** (1 / power) + 1.01 / levels) ** power) - jnp.abs(x)
    assert bool(jnp.all(jnp.abs(values - x) <= step)), "one of the two neighbours"
    assert bool(jnp.all(jnp.abs(values.mean(0) - x) <= 4 * step / 3000**0.5 + 1e-14 * largest))
    assert bool(jnp.all(values[:, 0, :16, 0] == 0))
    if kind == "second":
        assert float(values[:, 1].min()) > 0, "Adam divides by it"


def test_a_moment_that_moves_by_less_than_a_step_moves():
    """Second moments of beta2 = .999 that fall by half in 700 steps beside others that stay: nearest codes would not let them."""
    adam, exact = int8_adam.scale_by_adam(0.9, 0.999, 1e-8), optax.scale_by_adam(0.9, 0.999, 1e-8)
    rng, params = np.random.default_rng(0), {"w": jnp.zeros((256, 64))}
    a, b = adam.init(params), exact.init(params)
    sizes = np.where(np.arange(64) % 2, 1.0, 0.1).astype(np.float32)  # from step 20 on
    both = jax.jit(lambda g, a, b: (adam.update(g, a), exact.update(g, b)))
    seen = []
    for step in range(700):
        g = rng.normal(0.1, 1.0, (256, 64)).astype(np.float32) * (sizes if step >= 20 else 1.0)
        (u, a), (v, b) = both({"w": g}, a, b)
        if step > 500:
            seen.append((np.asarray(u["w"]), np.asarray(v["w"])))
    kept = int8_adam.decode_second(a.nu["w"], a.nu_scale["w"], int8_adam.blocks("w", (256, 64)))
    np.testing.assert_allclose(np.mean(kept, axis=0), np.mean(b.nu["w"], axis=0), rtol=0.08)
    ours, theirs = np.stack([u for u, _ in seen]), np.stack([v for _, v in seen])
    error = np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2))
    assert error < 0.15 and np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.99, error


def test_blocks_lie_along_inputs_and_are_many():
    table = {
        ("q", (28, 3584, 3584)): (-2, 16), ("down", (28, 18944, 3584)): (-2, 16), ("gate", (80, 8192, 29568)): (-2, 256),
        ("embed", (151936, 3584)): (-1, 16), ("a", (28, 4096, 16)): (-2, 128), ("b", (28, 8, 512)): (-1, 16),
        ("q_norm", (28, 128)): None, ("q_bias", (28, 3584)): None, ("score", (3584,)): None, ("odd", (7, 9)): None,
    }  # fmt: skip
    assert {key: int8_adam.blocks(*key) for key in table} == table


@pytest.mark.parametrize(("name", "bytes_each"), [("qwen2.5-7b", 2.25), ("qwen2.5-72b", 2.0783)])
def test_a_large_model_has_the_claimed_bytes_evenly_on_32_parts(name, bytes_each):
    cfg = preset(name)
    place = Placement(abstract_mesh(MeshConfig(data=1, fsdp=32, tensor=2), 64))
    params = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))
    state = jax.eval_shape(int8_adam.scale_by_adam(0.9, 0.99, 1e-8).init, params)
    shardings = optimizer_shardings(state, params, place.tree(transformer.logical_axes(cfg), params))
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    part = [np.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in
            zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)]  # fmt: skip
    assert total == pytest.approx(bytes_each * sum(x.size for x in jax.tree.leaves(params)), rel=0.002)
    assert sum(part) == pytest.approx(total / 64, rel=0.03), "vectors alone are whole everywhere"


def test_an_update_on_shards_is_that_on_one_device_and_communicates_nothing(eight_devices):
    adam = int8_adam.scale_by_adam(0.9, 0.99, 1e-8)
    axes = {"q": ("layers", "embed", "heads"), "embed": ("vocab", "embed"), "norm": ("norm",)}
    params = {"q": jnp.zeros((2, 64, 32)), "embed": jnp.zeros((48, 64)), "norm": jnp.zeros(64)}
    keys = jax.random.split(jax.random.key(0), 4)
    grads = [jax.tree.map(lambda p, k=k: jax.random.normal(k, p.shape), params) for k in keys]
    shardings = eight_devices.tree(axes, params)
    at = optimizer_shardings(jax.eval_shape(adam.init, params), params, shardings)
    assert at.mu_scale["q"].shard_shape((2, 4, 32)) == (2, 2, 16)
    update = jax.jit(adam.update, out_shardings=(shardings, at))
    one, many = adam.init(params), jax.jit(adam.init, out_shardings=at)(params)
    placed = [jax.device_put(g, shardings) for g in grads]
    compiled = update.lower(placed[0], many).compile()
    assert collectives(compiled.as_text(), dict(eight_devices.mesh.shape)) == []
    plain = jax.jit(adam.update)
    for g, there in zip(grads, placed, strict=True):
        (u, one), (v, many) = plain(g, one), update(there, many)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), u, v)
    jax.tree.map(np.testing.assert_array_equal, one, many)


def _training(cfg, place):
    optimizer = make_optimizer(OptimizerConfig(3e-3, "constant", moments="int8"), 20)
    start = lambda: transformer.init(cfg, jax.random.key(0))  # noqa: E731
    state, shardings = create_state(start, transformer.logical_axes(cfg), optimizer, place)
    tokens = np.random.default_rng(0).integers(1, 128, (8, 12)).astype(np.int32)
    batch = {
        "tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": np.tile(np.arange(12, dtype=np.int32), (8, 1)),
        "loss_mask": np.ones((8, 12), np.float32),
    }  # fmt: skip
    update = make_update(lambda p, b: sft_loss(p, b, cfg, place), optimizer, shardings)
    return state, shardings, lambda state: update(state, global_batch(batch, place))


@pytest.mark.slow
def test_resumed_equals_uninterrupted_on_any_mesh(small_model, one_device, eight_devices, tmp_path):
    losses = {}
    for name, place in (("one", one_device), ("eight", eight_devices)):
        state, shardings, step = _training(small_model, place)
        checkpoints = Checkpoints(tmp_path / name)
        losses[name] = []
        for number in range(1, 11):
            state, metrics = step(state)
            losses[name].append(float(metrics["loss"]))
            if number == 5:
                checkpoints.save(5, state.params, {"opt_state": state.opt_state}, {}, 0.0)
        checkpoints.wait()
        fresh, _, step = _training(small_model, place)
        params, rest, _ = checkpoints.restore(
            5, abstract_like(fresh.params, shardings.params), {"opt_state": abstract_like(fresh.opt_state, shardings.opt_state)}
        )
        checkpoints.close()
        again = fresh.replace(params=params, **rest)
        for _ in range(5):
            again, _ = step(again)
        jax.tree.map(np.testing.assert_array_equal, (again.params, again.opt_state), (state.params, state.opt_state))
    np.testing.assert_allclose(losses["one"], losses["eight"], rtol=2e-3)
    assert losses["one"][-1] < losses["one"][0] - 0.05
