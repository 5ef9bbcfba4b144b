"""8-bit weights and caches: rounding within its bound, samples close to the exact ones, and half the bytes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlaif_jax.config import RunConfig
from rlaif_jax.config.overrides import overridden
from rlaif_jax.errors import UserError
from rlaif_jax.models import quant, transformer
from rlaif_jax.models.matrices import Int8, dense
from rlaif_jax.sampling.decode import begin, unstack
from rlaif_jax.sampling.filters import SamplingConfig, row_keys, traced
from rlaif_jax.sampling.sampler import for_sampling, make_sampler, sequences
from tests import hf


def _params(cfg):
    return jax.tree.map(lambda x: x * 3 if x.ndim > 1 else x, transformer.init(cfg, jax.random.key(0)))


def test_rounding_is_at_most_half_a_step_per_output():
    matrix = jax.random.normal(jax.random.key(0), (3, 40, 7)) * jnp.arange(1.0, 8.0)
    small = quant.quantised(matrix)
    assert small.values.dtype == jnp.int8 and small.scale.shape == (3, 7)
    error = jnp.abs(small.dense() - matrix)
    assert float(jnp.max(error / small.scale[:, None])) <= 0.5001
    assert int(jnp.abs(small.values).max(axis=1).min()) == 127, "every output uses the whole range"
    x = jax.random.normal(jax.random.key(1), (5, 40))
    layer = Int8(small.values[0], small.scale[0])
    np.testing.assert_allclose(layer.matmul(x), x @ layer.dense(), rtol=1e-4, atol=1e-3)
    zero = quant.quantised(jnp.zeros((1, 4, 2)))
    assert float(jnp.abs(zero.dense()).max()) == 0.0


WEIGHTS, CACHE = {"rollout_quant": "int8"}, {"kv_cache": "int8"}


@pytest.mark.parametrize(
    "changes",
    [pytest.param(WEIGHTS, marks=pytest.mark.slow), pytest.param(CACHE, marks=pytest.mark.slow), WEIGHTS | CACHE],
    ids=["weights", "cache", "both"],
)
def test_log_probs_of_samples_stay_close(small_model, one_device, eight_devices, changes):
    cfg = dataclasses.replace(small_model, **changes)
    params, (tokens, segments) = _params(cfg), hf.rows(left=True, count=4, vocab=128)
    sampling = traced(SamplingConfig(), ())

    def sample(place):
        sampler = make_sampler(cfg, transformer.logical_axes(cfg), place, group=2, max_tokens=24, pad_id=0)
        weights = jax.device_put(params, place.tree(transformer.logical_axes(cfg), params))
        return jax.device_get(sampler(weights, tokens, segments, 0, 0, sampling))

    out = sample(one_device)
    seq = sequences(tokens, segments, out, 2)
    hidden = transformer.forward(params, small_model, seq.tokens, seq.segment_ids, seq.positions)
    exact, _ = transformer.logprobs(params, small_model, hidden[:, -25:-1], seq.tokens[:, -24:])
    gap = np.abs(np.asarray(exact) - out.logprobs)
    assert 1e-6 < gap.mean() < 0.03 and gap.max() < 0.3, "close, and not the same"
    np.testing.assert_array_equal(sample(eight_devices).tokens, out.tokens)


def test_the_cache_and_the_weights_are_half_of_bfloat16(small_model, one_device):
    def sizes(**changes):
        cfg = dataclasses.replace(small_model, compute_dtype="bfloat16", head_dim=64, **changes)
        axes = transformer.logical_axes(cfg)
        params = jax.eval_shape(lambda: for_sampling(transformer.init(cfg, jax.random.key(0)), cfg, axes, one_device))
        keys = jax.eval_shape(lambda: row_keys(0, 0, jnp.arange(4)))
        tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)

        def start(params, tokens, keys):
            return begin(params, unstack(params, cfg), cfg, tokens, tokens, keys, group=2, max_tokens=8, pad_id=0)[1].caches

        caches = jax.eval_shape(start, params, tokens, keys)
        return [sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(t)) for t in (params["layers"], caches)]

    weights, cache = sizes()
    assert sizes(rollout_quant="int8")[0] < 0.56 * weights
    assert sizes(kv_cache="int8")[1] == cache * (64 + 4) // 128


def test_quantised_layers_leave_the_rest_as_it_is(small_model):
    params = _params(small_model)
    small = quant.quantise_layers(params)
    assert small["embed"] is params["embed"] and small["layers"]["attn_norm"] is params["layers"]["attn_norm"]
    assert isinstance(small["layers"]["gate"], Int8)
    tokens, segments = hf.rows(left=False, vocab=128)
    a, b = (transformer.forward(p, small_model, tokens, segments, hf.as_jax(segments)) for p in (small, dense(small)))
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_rl_in_8_bits_without_a_correction_is_refused():
    with pytest.raises(UserError, match=r"rl\.policy\.rollout_correction"):
        overridden(RunConfig(), ["model.kv_cache=int8"])
    cfg = overridden(RunConfig(), ["model.kv_cache=int8", "rl.policy.rollout_correction=token_truncate"])
    assert cfg.model.kv_cache == "int8"
