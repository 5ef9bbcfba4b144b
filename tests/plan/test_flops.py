"""Operations counted from the traced program."""

import jax
import jax.numpy as jnp
import pytest

from rlaif_jax.models import transformer
from rlaif_jax.plan.flops import count_flops


def _count(function, *shapes, loop_trips=1):
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    return count_flops(jax.make_jaxpr(function)(*args), loop_trips)


def test_matrix_products_and_what_surrounds_them():
    assert _count(lambda a, b: a @ b, (3, 4), (4, 5)) == 2 * 3 * 4 * 5
    assert _count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (7, 3, 4), (7, 4, 5)) == 7 * 2 * 3 * 4 * 5
    assert _count(jax.jit(lambda a: jnp.tanh(a) @ a), (4, 4)) == 2 * 4**3
    assert _count(lambda a: jax.lax.scan(lambda c, _: (c @ a, None), a, None, length=6)[0], (4, 4)) == 6 * 2 * 4**3
    assert _count(lambda a: jax.lax.cond(a[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, a), (4, 4)) == 2 * 2 * 4**3

    def loop(a):
        return jax.lax.while_loop(lambda c: c.sum() > 0, lambda c: c @ a, a)

    assert _count(loop, (4, 4), loop_trips=9) == 9 * 2 * 4**3


@pytest.mark.parametrize(("remat", "passes"), [("none", 3), ("full", 4)])
def test_a_training_step_is_3_forward_passes_and_4_with_recomputation(small_model, remat, passes):
    import dataclasses

    cfg = dataclasses.replace(small_model, remat=remat)
    tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)
    params = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))

    def trunk(p, t):
        return transformer.forward(p, cfg, t, jnp.ones_like(t), jnp.zeros_like(t)).sum()

    forward = count_flops(jax.make_jaxpr(trunk)(params, tokens))
    training = count_flops(jax.make_jaxpr(jax.grad(trunk))(params, tokens))
    layer = sum(w.size for name, w in params["layers"].items() if name in ("q", "k", "v", "o", "gate", "up", "down"))
    attention = 2 * 2 * 2 * cfg.layers * cfg.heads * 16 * 16 * cfg.head_dim
    assert forward == 2 * 2 * 16 * layer + attention
    assert passes - 0.5 < training / forward < passes + 0.01  # without the embedding's own gradient
