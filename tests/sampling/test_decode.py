"""Decode equals the full forward; samples depend on neither batch, nor mesh; filters equal the sorted definition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlaif_jax.errors import UserError
from rlaif_jax.models import transformer
from rlaif_jax.sampling.filters import SamplingConfig, filter_logits, row_keys, sample_token, traced
from rlaif_jax.sampling.sampler import for_sampling, make_sampler, sequences

EOS = (3, 5)


def _setup(cfg, place, group=4, tokens=16):
    params = jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, transformer.init(cfg, jax.random.key(0)))
    rng = np.random.default_rng(0)
    segments = (np.arange(10)[None] >= rng.integers(0, 8, 8)[:, None]).astype(np.int32)
    prompts = rng.integers(6, 128, (8, 10)).astype(np.int32) * segments
    axes = transformer.logical_axes(cfg)
    params = jax.device_put(params, place.tree(axes, params))
    return params, prompts, segments, make_sampler(cfg, axes, place, group=group, max_tokens=tokens, pad_id=0)


@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(0.6, top_p=0.9), SamplingConfig(0.0)])
def test_sampler_logprobs_are_the_trainers(small_model, one_device, sampling):
    params, prompts, segments, sampler = _setup(small_model, one_device)
    values = traced(sampling, EOS)
    out = sampler(params, prompts, segments, 0, 1, values)
    seq = sequences(prompts, segments, out, 4)
    hidden = transformer.forward(params, small_model, seq.tokens, seq.segment_ids, seq.positions)
    logp, _ = transformer.logprobs(params, small_model, hidden[:, -17:-1], seq.tokens[:, -16:], values.temperature)
    assert float(out.mask.sum()) > 60
    np.testing.assert_allclose(logp * out.mask, out.logprobs, atol=2e-5)


def test_the_sampler_rounds_the_weights_of_norms_no_more_than_the_trainer(small_model, one_device):
    cfg = dataclasses.replace(small_model, compute_dtype="bfloat16")
    params, prompts, segments, sampler = _setup(cfg, one_device)
    norms = jax.tree_util.tree_map_with_path(lambda path, x: x * 1.003 if "norm" in jax.tree_util.keystr(path) else x, params)
    out = sampler(norms, prompts, segments, 0, 1, traced(SamplingConfig(), EOS))
    seq = sequences(prompts, segments, out, 4)
    hidden = transformer.forward(norms, cfg, seq.tokens, seq.segment_ids, seq.positions)
    logp, _ = transformer.logprobs(norms, cfg, hidden[:, -17:-1], seq.tokens[:, -16:])
    kept = for_sampling(norms, cfg, transformer.logical_axes(cfg), one_device)
    assert kept["final_norm"].dtype == kept["layers"]["attn_norm"].dtype == jnp.float32 and kept["embed"].dtype == jnp.bfloat16
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), norms)
    rough = transformer.forward(rounded, cfg, seq.tokens, seq.segment_ids, seq.positions)
    other, _ = transformer.logprobs(rounded, cfg, rough[:, -17:-1], seq.tokens[:, -16:])
    gaps = [float((np.abs(found - out.logprobs) * out.mask).sum() / out.mask.sum()) for found in (logp, other)]
    assert gaps[0] < 0.02 and gaps[0] < gaps[1], gaps


def test_values_are_traced_and_eos_ends_rows(small_model, one_device):
    params, prompts, segments, sampler = _setup(small_model, one_device)
    for sampling, eos in ((SamplingConfig(), EOS), (SamplingConfig(0.7, 5, 0.9, 0.01), (7,)), (SamplingConfig(0.3), ())):
        out = jax.device_get(sampler(params, prompts, segments, 0, 0, traced(sampling, eos)))
        for tokens, mask, finished in zip(out.tokens, out.mask, out.finished, strict=True):
            length = int(mask.sum())
            assert finished == (tokens[length - 1] in eos)
            assert not set(tokens[: length - 1].tolist()) & set(eos)
            assert (tokens[length:] == 0).all() and (mask[:length] == 1).all()
    assert sampler.program._cache_size() == 1


def test_samples_depend_on_neither_batch_nor_mesh(small_model, one_device, eight_devices):
    params, prompts, segments, sampler = _setup(small_model, one_device)
    values = traced(SamplingConfig(), EOS)
    whole = jax.device_get(sampler(params, prompts, segments, 3, 9, values))
    half = jax.device_get(sampler(params, prompts[:4], segments[:4], 3, 9, values))
    np.testing.assert_array_equal(whole.tokens[:16], half.tokens)
    params8, _, _, sampler8 = _setup(small_model, eight_devices)
    spread = jax.device_get(sampler8(params8, prompts, segments, 3, 9, values))
    np.testing.assert_array_equal(whole.tokens, spread.tokens)
    other_step = jax.device_get(sampler(params, prompts, segments, 3, 10, values))
    assert (whole.tokens != other_step.tokens).any()


def _sorted_filter(logits, cfg):
    """The textbook definition, by sorting."""
    x = logits / cfg.temperature
    keep = np.ones_like(x, bool)
    if cfg.top_k:
        keep &= x >= np.sort(x)[-cfg.top_k]
    p = np.where(keep, np.exp(x - x.max()), 0)
    p /= p.sum()
    order = np.argsort(-p)
    before = np.cumsum(p[order]) - p[order]
    if cfg.top_p < 1:
        nucleus = np.zeros_like(keep)
        nucleus[order[before < cfg.top_p]] = True
        keep &= nucleus
    if cfg.min_p:
        keep &= np.exp(x - x.max()) >= cfg.min_p
    return keep


@pytest.mark.parametrize(
    "cfg",
    [SamplingConfig(0.7, 5), SamplingConfig(1.3, 0, 0.8), SamplingConfig(1.0, 0, 1.0, 0.1), SamplingConfig(0.9, 20, 0.5, 0.02)],
)
def test_filters_equal_the_sorted_definition(cfg):
    logits = np.random.default_rng(0).normal(0, 2, (50, 300)).astype(np.float32)
    kept = np.isfinite(np.asarray(filter_logits(jnp.array(logits), traced(cfg, EOS))))
    np.testing.assert_array_equal(kept, np.array([_sorted_filter(row, cfg) for row in logits]))


def test_sampling_frequencies_are_the_probabilities():
    logits = jnp.tile(jnp.log(jnp.array([0.5, 0.3, 0.2])), (20000, 1))
    keys = row_keys(0, 0, jnp.arange(20000))
    counts = np.bincount(sample_token(logits, keys, jnp.int32(0), traced(SamplingConfig(), ())), minlength=3)
    np.testing.assert_allclose(counts / 20000, [0.5, 0.3, 0.2], atol=0.015)


def test_bad_values_are_refused_by_name():
    with pytest.raises(UserError, match="top_p"):
        SamplingConfig(top_p=0.0)
    with pytest.raises(UserError, match="temperature"):
        dataclasses.replace(SamplingConfig(), temperature=-1.0)
