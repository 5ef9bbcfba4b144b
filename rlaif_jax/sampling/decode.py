"""One jitted program: prefill each prompt once, repeat its KV cache for G samples, decode in a while loop.

Each layer has one cache for K and one for V, (B, S = Tp + R, K, H). Prompts are left-padded, so all rows write to the same slot:

    slot      0 ........ Tp-1 | Tp ........... S-1
    row b     pad pad a  b    | c  d  <eos> -
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from rlaif_jax.models import ops
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.models.quant import from_cache, to_cache
from rlaif_jax.sampling.filters import SamplingParams, sample_token
from rlaif_jax.sharding.placement import Placement, constrain


@chex.dataclass(frozen=True)
class Decoded:
    """Sampled responses.

    Attributes:
      tokens: (B, R) int32, padding after the end.
      mask: (B, R) float32, 1 up to and including EOS.
      logprobs: (B, R) float32 nats at the sampling temperature (see `ops.token_logprob`), 0 where masked.
      finished: (B,) bool, whether EOS was sampled.
    """

    tokens: jax.Array
    mask: jax.Array
    logprobs: jax.Array
    finished: jax.Array


@chex.dataclass(frozen=True)
class Prompted:
    """What decoding does not change: random keys (B,); visible (B, S) bool, the slots of the prompt; prompt lengths (B,)."""

    keys: jax.Array
    visible: jax.Array
    lengths: jax.Array


@chex.dataclass(frozen=True)
class DecodeState:
    """Rows after `step` tokens. The caches have the slots of the prompt, then one slot per response token."""

    step: jax.Array
    logits: jax.Array  # (B, V), of the next token
    caches: tuple  # per layer (K, V), each (B, S, K, H); with int8 also scales (B, S, K)
    tokens: jax.Array
    mask: jax.Array
    logprobs: jax.Array
    done: jax.Array


def unstack(params: dict, cfg: ModelConfig) -> tuple[ops.Weights, ...]:
    """The weights of each layer as a tuple. Call it outside the loop: slicing stacked weights inside copies them every step."""
    return tuple(jax.tree.map(lambda w, i=i: w[i], params["layers"]) for i in range(cfg.layers))


def _prefill(params, layers, cfg, tokens, segment_ids, place):
    """Last logits (P, V) and per-layer caches (P, Tp, K, H) of left-padded prompts."""
    x = params["embed"].astype(cfg.compute_dtype)[tokens]
    angles = ops.rope_angles(ops.positions_of(segment_ids), cfg)
    mask = ops.causal_mask(segment_ids)
    caches = []

    def attend(q, k, v):
        return ops.attention(q, k, v, mask, cfg.attention), (to_cache(k, cfg.kv_cache), to_cache(v, cfg.kv_cache))

    for weights in layers:
        x, kept = ops.layer(weights, cfg, x, angles, attend)
        x = constrain(x, ("batch", "context", "activation"), place)
        caches.append(kept)
    return _last_logits(params, cfg, x[:, -1]), caches


def _last_logits(params, cfg, x):
    x = ops.rms_norm(x, params["final_norm"], cfg.norm_eps)
    return ops.logits(x, ops.output_matrix(params, cfg))


def _written(cache, x, slot, cfg):
    """The cache with x (B, 1, K, H) written to this slot."""
    return jax.tree.map(lambda c, new: jax.lax.dynamic_update_slice_in_dim(c, new, slot, axis=1), cache, to_cache(x, cfg.kv_cache))


def _decode_step(params, layers, cfg, caches, token, position, slot, visible):
    """One token (B,) through all layers -> its logits (B, V) and the caches with the new slot written."""
    x = params["embed"].astype(cfg.compute_dtype)[token][:, None]
    angles = ops.rope_angles(position[:, None], cfg)
    new_caches = []
    for weights, (k_cache, v_cache) in zip(layers, caches, strict=True):

        def attend(q, k, v, k_cache=k_cache, v_cache=v_cache):
            k_all, v_all = _written(k_cache, k, slot, cfg), _written(v_cache, v, slot, cfg)
            keys, values = from_cache(k_all, q.dtype), from_cache(v_all, q.dtype)
            return ops.attention(q, keys, values, visible[:, None]), (k_all, v_all)

        x, kept = ops.layer(weights, cfg, x, angles, attend)
        new_caches.append(kept)
    return _last_logits(params, cfg, x[:, 0]), tuple(new_caches)


def begin(
    params: dict, layers: tuple, cfg: ModelConfig, prompts: jax.Array, segment_ids: jax.Array, keys: jax.Array, *,
    group: int, max_tokens: int, pad_id: int, place: Placement | None = None,
) -> tuple[Prompted, DecodeState]:  # fmt: skip
    """Prefills P left-padded prompts (P, Tp) and repeats each `group` times: rows B = P * group, a prompt's samples adjacent."""
    logits, caches = _prefill(params, layers, cfg, prompts, segment_ids, place)
    rows = prompts.shape[0] * group

    def repeat(x):
        return constrain(jnp.repeat(x, group, axis=0), ("batch",) + (None,) * (x.ndim - 1), place)

    def grow(x):  # room for the response, (B, Tp + R, K, H), or (B, Tp + R, K) for scales
        return repeat(jnp.pad(x, ((0, 0), (0, max_tokens)) + ((0, 0),) * (x.ndim - 2)))

    visible = repeat(jnp.pad(segment_ids > 0, ((0, 0), (0, max_tokens))))
    zeros = jnp.zeros((rows, max_tokens), jnp.float32)
    return Prompted(keys=keys, visible=visible, lengths=repeat(jnp.sum(segment_ids > 0, axis=1))), DecodeState(
        step=jnp.int32(0), logits=repeat(logits), caches=jax.tree.map(grow, tuple(caches)),
        tokens=jnp.full((rows, max_tokens), pad_id, jnp.int32), mask=zeros, logprobs=zeros,
        done=jnp.zeros((rows,), bool),
    )  # fmt: skip


def advance(
    params: dict, layers: tuple, cfg: ModelConfig, prompted: Prompted, state: DecodeState, sampling: SamplingParams,
    *, until: jax.Array | int, pad_id: int,
) -> DecodeState:  # fmt: skip
    """Decodes up to step `until` (traced, at most R), or until every row has sampled EOS."""
    slots = jnp.arange(prompted.visible.shape[1])
    prompt_length = len(slots) - state.tokens.shape[1]

    def body(s: DecodeState) -> DecodeState:
        token = jnp.where(s.done, pad_id, sample_token(s.logits, prompted.keys, s.step, sampling))
        # Adds 0, since tokens are >= 0. It only makes the log-prob depend on `token`, so that all devices run both in this order.
        logprob, _ = ops.token_logprob(s.logits, token, sampling.temperature + jnp.minimum(token, 0)[:, None])
        slot = prompt_length + s.step
        visible = prompted.visible | ((slots >= prompt_length) & (slots <= slot))
        next_logits, new_caches = _decode_step(params, layers, cfg, s.caches, token, prompted.lengths + s.step, slot, visible)
        live = ~s.done
        return DecodeState(
            step=s.step + 1,
            logits=next_logits,
            caches=new_caches,
            tokens=s.tokens.at[:, s.step].set(token),
            mask=s.mask.at[:, s.step].set(live.astype(jnp.float32)),
            logprobs=s.logprobs.at[:, s.step].set(jnp.where(live, logprob, 0.0)),
            done=s.done | jnp.isin(token, sampling.eos_ids),
        )

    return jax.lax.while_loop(lambda s: (s.step < until) & ~jnp.all(s.done), body, state)


def decode(
    params: dict, cfg: ModelConfig, prompts: jax.Array, segment_ids: jax.Array, keys: jax.Array,
    sampling: SamplingParams, *, group: int, max_tokens: int, pad_id: int, place: Placement | None = None,
) -> Decoded:  # fmt: skip
    """Samples `group` responses for each of P left-padded prompts (P, Tp). Rows B = P * group; samples of a prompt are adjacent.

    `keys` (B,) from `row_keys`. Static: cfg, group, max_tokens, pad_id, place. The loop stops early once every row has sampled
    EOS.
    """
    layers = unstack(params, cfg)
    prompted, start = begin(
        params, layers, cfg, prompts, segment_ids, keys, group=group, max_tokens=max_tokens, pad_id=pad_id, place=place
    )  # fmt: skip
    end = advance(params, layers, cfg, prompted, start, sampling, until=max_tokens, pad_id=pad_id)
    return Decoded(tokens=end.tokens, mask=end.mask, logprobs=end.logprobs, finished=end.done)
