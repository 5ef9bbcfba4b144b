"""`after`: the value stays, the order of two collectives becomes a dependency."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlaif_jax.plan.hlo import unordered
from rlaif_jax.sharding.order import after


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_the_value_is_unchanged(dtype):
    x, logprobs = np.arange(-3, 3).astype(dtype).reshape(2, 3), np.full((2, 3), -1.5, np.float32)
    found = jax.jit(lambda x, logp: after(x, jnp.any(logp > 1e30, axis=1, keepdims=True)))(x, logprobs)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, x)
    assert after(jnp.float32(0.7), jnp.array([3, 0]) < 0).shape == (2,), "one entry per row"


def _two_loops(place, waits: bool) -> str:
    """The compiled text of two loops with an all-reduce in each, where the second reads nothing of the first."""

    def loop(x, w):
        return jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ w @ w.T), None), x, None, length=3)[0]

    def program(x, w, y):
        first = loop(x, w)
        small = jnp.sum(first > 2.0)  # tanh is never above 1: 0
        return first, loop(after(y, small < 0) if waits else y, w)

    rows = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=place.rows(8))
    w = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=place.array((None, "mlp"), (16, 32)))
    return jax.jit(program, out_shardings=place.rows(8)).lower(rows, w, rows).compile().as_text()


def test_a_later_collective_reads_what_the_earlier_loop_made(eight_devices):
    assert unordered(_two_loops(eight_devices, waits=False)), "without it they are left to the order alone"
    assert unordered(_two_loops(eight_devices, waits=True)) == []
