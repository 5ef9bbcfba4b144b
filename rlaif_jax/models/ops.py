"""The arithmetic of a decoder: plain functions, no state.

Axes: B rows, T tokens, S cache slots, N query heads, K kv heads, H head dim, D width, F ffn, V vocab.
Statistics of norms, softmax and log-probs are float32 in every compute dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlaif_jax.models.matrices import Matrix, is_wrapped, product
from rlaif_jax.models.model_config import ModelConfig

Weights = dict[str, Matrix]
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, object]]


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * scale over the last axis; statistics in float32 (arXiv 1910.07467)."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(jnp.float32)).astype(x.dtype)


def rope_frequencies(cfg: ModelConfig) -> jax.Array:
    """(H/2,) float32 radians per position (arXiv 2104.09864), scaled by `cfg.rope_scaling`.

    "llama3" is the rule of Llama 3.1's reference code: low frequencies are divided by the factor, high ones are kept. Between
    them it interpolates by the number of wavelengths that fit into the original context.
    """
    frequency = cfg.rope_theta ** (-jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim)
    scaling = cfg.rope_scaling
    if scaling is None:
        return frequency
    if scaling.type == "linear":
        return frequency / scaling.factor
    turns = scaling.original_positions * frequency / (2 * jnp.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = jnp.clip(kept, 0.0, 1.0)
    return kept * frequency + (1 - kept) * frequency / scaling.factor


def rope_angles(positions: jax.Array, cfg: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """cos and sin, (B, T, 1, H/2) float32, of rotary positions (B, T)."""
    angle = positions[..., None, None].astype(jnp.float32) * rope_frequencies(cfg)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary positions on (B, T, heads, H); the halves form the pairs, as in Hugging Face checkpoints."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, implementation: str = "xla") -> jax.Array:
    """Grouped-query attention: q (B, T, N, H), k and v (B, S, K, H), mask (B, T, S) bool -> (B, T, N, H).

    A query whose mask is empty (padding) gets a finite value, which must not be used.
    """
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation=implementation)


def causal_mask(segment_ids: jax.Array, shared_prefix: bool = False) -> jax.Array:
    """(B, T, T) bool: a token attends to itself and to earlier tokens of its segment. Segment 0 is padding.

    No token attends to padding. With `shared_prefix` every segment also attends to segment 1: one row then holds several
    continuations of one beginning.
    """
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    if shared_prefix:
        same |= segment_ids[:, None, :] == 1
    return same & (segment_ids[:, None, :] > 0) & jnp.tril(jnp.ones((segment_ids.shape[1],) * 2, bool))


def positions_of(segment_ids: jax.Array) -> jax.Array:
    """(B, T) int32: 0, 1, 2 ... over the tokens of each unpacked row, with padding on either side."""
    return jnp.maximum(jnp.cumsum(segment_ids > 0, axis=1) - 1, 0).astype(jnp.int32)


def linear(x: jax.Array, weight: Matrix) -> jax.Array:
    """(..., D) times (D, F): a plain matrix, a `LoraMatrix` or an `Int8`."""
    return weight.matmul(x) if is_wrapped(weight) else product(x, weight)


def _project(x: jax.Array, weights: Weights, name: str, heads: int) -> jax.Array:
    out = linear(x, weights[name])
    if f"{name}_bias" in weights:
        out = out + weights[f"{name}_bias"].astype(x.dtype)
    return out.reshape(*x.shape[:-1], heads, -1)


def layer(
    weights: Weights, cfg: ModelConfig, x: jax.Array, angles: tuple[jax.Array, jax.Array], attend: Attend
) -> tuple[jax.Array, object]:
    """One decoder block, x (B, T, D) -> (B, T, D).

    `attend(q, k, v)` returns the context (B, T, N, H) and a value for the caller, such as the layer's KV cache.
    Training, prefill and decode differ only in `attend`.
    """
    h = rms_norm(x, weights["attn_norm"], cfg.norm_eps)
    q, k, v = (_project(h, weights, n, c) for n, c in (("q", cfg.heads), ("k", cfg.kv_heads), ("v", cfg.kv_heads)))
    if cfg.qk_norm:
        q, k = rms_norm(q, weights["q_norm"], cfg.norm_eps), rms_norm(k, weights["k_norm"], cfg.norm_eps)
    context, kept = attend(rotate(q, angles), rotate(k, angles), v)
    x = x + linear(context.reshape(*x.shape[:-1], -1), weights["o"])
    h = rms_norm(x, weights["mlp_norm"], cfg.norm_eps)
    gated = jax.nn.silu(linear(h, weights["gate"])) * linear(h, weights["up"])
    return x + linear(gated, weights["down"]), kept


def output_matrix(params: dict, cfg: ModelConfig) -> jax.Array:
    """(V, D): the rows whose inner product with a hidden state gives the logits."""
    return params["embed"] if cfg.tied_embeddings else params["lm_head"]


def logits(hidden: jax.Array, matrix: jax.Array) -> jax.Array:
    """(..., D) hidden, (V, D) matrix -> (..., V) float32."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    out = jnp.einsum("td,vd->tv", flat, matrix.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return out.reshape(*hidden.shape[:-1], matrix.shape[0])


def token_logprob(logits: jax.Array, tokens: jax.Array, temperature: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """log P(token) and the entropy, both (...) float32 nats, under softmax(logits / temperature).

    Sampler, old policy, reference and current policy all call this function, so identical weights give a ratio of exactly 1.
    top-k, top-p and min-p are not applied here (as in TRL and verl): in a truncated distribution, rounding can give a token
    at the edge an infinite ratio. Temperature 0 (greedy) reports the log-prob at temperature 1.
    """
    temperature = jnp.where(temperature > 0, temperature, 1.0)
    scaled = logits.astype(jnp.float32) / temperature
    logp = scaled - jax.nn.logsumexp(scaled, axis=-1, keepdims=True)
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    return jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0], entropy
