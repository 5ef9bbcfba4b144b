"""The decoder: Linen declares the parameters and their logical axes; `ops` does the arithmetic.

    params = init(cfg, key)                        # dict: embed, layers/{q, k, ...} stacked over L, final_norm, lm_head
    hidden = forward(params, cfg, tokens, segment_ids, positions)
    logp, entropy = logprobs(params, cfg, hidden, targets, temperature)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from rlaif_jax.models import ops
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.sharding.placement import Placement, constrain

Table = dict[str, tuple[tuple[int, ...], tuple[str | None, ...], float | None]]
_HIDDEN = ("batch", "context", "activation")


def layer_table(cfg: ModelConfig) -> Table:
    """Every weight of one block: name -> (shape, logical axes, std of the normal initialiser; None = ones)."""
    q, kv, d, f = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim, cfg.width, cfg.ffn
    residual = 0.02 / (2 * cfg.layers) ** 0.5  # GPT-2's: keeps the residual stream's variance flat in depth
    table: Table = {
        "attn_norm": ((d,), ("norm",), None),
        "q": ((d, q), ("embed", "heads"), 0.02),
        "k": ((d, kv), ("embed", "kv_heads"), 0.02),
        "v": ((d, kv), ("embed", "kv_heads"), 0.02),
        "o": ((q, d), ("heads", "embed"), residual),
        "mlp_norm": ((d,), ("norm",), None),
        "gate": ((d, f), ("embed", "mlp"), 0.02),
        "up": ((d, f), ("embed", "mlp"), 0.02),
        "down": ((f, d), ("mlp", "embed"), residual),
    }
    if cfg.qkv_bias:
        table |= {"q_bias": ((q,), ("heads",), 0.0)} | {f"{n}_bias": ((kv,), ("kv_heads",), 0.0) for n in "kv"}
    if cfg.qk_norm:
        table |= {f"{n}_norm": ((cfg.head_dim,), ("norm",), None) for n in "qk"}
    return table


def top_table(cfg: ModelConfig) -> Table:
    """Every weight outside the blocks."""
    table: Table = {
        "embed": ((cfg.vocab_size, cfg.width), ("vocab", "embed"), 0.02),
        "final_norm": ((cfg.width,), ("norm",), None),
    }
    if not cfg.tied_embeddings:
        table["lm_head"] = ((cfg.vocab_size, cfg.width), ("vocab", "embed"), 0.02)
    return table


def declare(module: nn.Module, table: Table, dtype: str) -> ops.Weights:
    """Registers the table's weights on a Linen module and returns them as a dict."""
    weights = {}
    for name, (shape, axes, std) in table.items():
        initialiser = nn.initializers.ones if std is None else nn.initializers.normal(std)
        weights[name] = module.param(name, nn.with_logical_partitioning(initialiser, axes), shape, jnp.dtype(dtype))
    return weights


class _Layer(nn.Module):
    cfg: ModelConfig
    place: Placement | None

    @nn.compact
    def __call__(self, x, angles, mask):
        weights = declare(self, layer_table(self.cfg), self.cfg.param_dtype)

        def attend(q, k, v):
            return ops.attention(q, k, v, mask, self.cfg.attention), None

        x, _ = ops.layer(weights, self.cfg, x, angles, attend)
        return constrain(x, _HIDDEN, self.place), None


class _Transformer(nn.Module):
    cfg: ModelConfig
    place: Placement | None = None
    shared_prefix: bool = False

    @nn.compact
    def __call__(self, tokens, segment_ids, positions):
        cfg = self.cfg
        weights = declare(self, top_table(cfg), cfg.param_dtype)
        x = weights["embed"].astype(cfg.compute_dtype)[tokens]
        x = constrain(x, _HIDDEN, self.place)
        angles = ops.rope_angles(positions, cfg)
        layers = nn.scan(
            _remat(cfg), variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=(nn.broadcast, nn.broadcast),
            length=cfg.layers, metadata_params={nn.PARTITION_NAME: "layers"},
        )(cfg, self.place, name="layers")  # fmt: skip
        x, _ = layers(x, angles, ops.causal_mask(segment_ids, self.shared_prefix))
        return ops.rms_norm(x, weights["final_norm"], cfg.norm_eps)


def _remat(cfg: ModelConfig) -> type[nn.Module]:
    """The block class for `cfg.remat`: activations are stored, recomputed, or stored only for matrix products."""
    if cfg.remat == "none":
        return _Layer
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if cfg.remat == "dots" else None
    return nn.remat(_Layer, policy=policy, prevent_cse=False)


def init(cfg: ModelConfig, key: jax.Array) -> dict:
    """Random initial parameters (unboxed dict, `param_dtype`). For a sharded init, call it under jit with `out_shardings`."""
    dummy = jnp.zeros((1, 2), jnp.int32)
    return nn.meta.unbox(_Transformer(cfg).init(key, dummy, dummy + 1, dummy)["params"])


def logical_axes(cfg: ModelConfig) -> dict:
    """The tree of `init` with a tuple of logical axis names for each parameter."""
    layers = {name: ("layers", *axes) for name, (_, axes, _) in layer_table(cfg).items()}
    return {name: axes for name, (_, axes, _) in top_table(cfg).items()} | {"layers": layers}


def forward(
    params: dict, cfg: ModelConfig, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array,
    place: Placement | None = None, *, shared_prefix: bool = False,
) -> jax.Array:  # fmt: skip
    """tokens, segment_ids (0 = padding), positions, all (B, T) int32 -> normed hidden states (B, T, D).

    `shared_prefix`: see `ops.causal_mask`.
    """
    return _Transformer(cfg, place, shared_prefix).apply({"params": params}, tokens, segment_ids, positions)


def logprobs(
    params: dict, cfg: ModelConfig, hidden: jax.Array, targets: jax.Array, temperature: jax.Array | float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """log P(target) and entropy, (B, T) float32 nats: hidden (B, T, D) at t predicts targets (B, T) at t.

    Logits are computed for `cfg.logit_chunk` tokens per row at a time, and recomputed in the backward pass. With a vocabulary
    of 152k tokens, all logits in float32 would be the memory peak of the training step.
    """
    matrix = ops.output_matrix(params, cfg)
    length, chunk = targets.shape[1], cfg.logit_chunk
    if length <= chunk:
        return ops.token_logprob(ops.logits(hidden, matrix), targets, temperature)

    @jax.checkpoint
    def one(piece_hidden, piece_targets):
        return ops.token_logprob(ops.logits(piece_hidden, matrix), piece_targets, temperature)

    pad = -length % chunk
    hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, pad)))
    pieces = tuple(jnp.moveaxis(a.reshape(a.shape[0], -1, chunk, *a.shape[2:]), 1, 0) for a in (hidden, targets))
    out = jax.lax.map(lambda xs: one(*xs), pieces)
    return tuple(jnp.moveaxis(a, 0, 1).reshape(targets.shape)[:, :length] for a in out)
