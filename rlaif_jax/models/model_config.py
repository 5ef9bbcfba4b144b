"""Shapes and numerics of one decoder (Qwen2/2.5, Qwen3, Llama 3, Mistral), and named presets."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from rlaif_jax.errors import UserError
from rlaif_jax.ranges import Count, Range, Tokens, check_fields

SCRATCH = "scratch"  # as init_from: random weights are meant


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are scaled for long texts; see `ops.rope_frequencies`.

    "linear" divides every frequency by `factor`. "llama3" divides frequencies with a wavelength above original_positions /
    low_freq_factor, keeps those below original_positions / high_freq_factor, and interpolates between the two.

    Attributes:
      type: "linear" or "llama3".
      factor: divisor of the frequencies.
      low_freq_factor, high_freq_factor, original_positions: bounds for "llama3", see above.
    """

    type: str = "llama3"
    factor: Annotated[float, Range(1, 1e4)] = 8.0
    low_freq_factor: Annotated[float, Range(0, 1e4, above=True)] = 1.0
    high_freq_factor: Annotated[float, Range(0, 1e4, above=True)] = 4.0
    original_positions: Tokens = 8192

    def __post_init__(self):
        check_fields(self)
        if self.type not in ("linear", "llama3"):
            raise UserError(f"model.rope_scaling.type is {self.type!r}; expected linear or llama3")
        if self.low_freq_factor >= self.high_freq_factor:
            raise UserError("model.rope_scaling: expected low_freq_factor < high_freq_factor")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder with grouped-query attention, rotary positions, RMSNorm and SwiGLU.

    Qwen2/2.5 sets `qkv_bias`, Qwen3 sets `qk_norm`, Llama 3 and Mistral neither.

    Attributes:
      vocab_size: number of tokens; 0 = the tokenizer's size, rounded up to a multiple of 64.
      width: width of the residual stream (hidden_size in Hugging Face configs).
      ffn: width inside the feed-forward layers (intermediate_size).
      layers: number of blocks (num_hidden_layers).
      heads, kv_heads: number of query heads and of key/value heads (num_attention_heads, num_key_value_heads).
      head_dim: width of one head.
      rope_theta: base of the rotary frequencies.
      norm_eps: added to the variance in RMSNorm (rms_norm_eps).
      qkv_bias: queries, keys and values have biases.
      qk_norm: RMSNorm on queries and keys.
      tied_embeddings: the embedding is also the output matrix (tie_word_embeddings).
      rope_scaling: scaling of the rotary frequencies for long texts; None = none.
      max_positions: tokens of the longest text that it is made for (max_position_embeddings); longer limits are refused.
      param_dtype: dtype of the stored weights, float32 or bfloat16.
      compute_dtype: dtype of activations and matrix products, float32 or bfloat16.
      remat: activations that the backward pass recomputes: "none", "full" (all), or "dots" (all but matrix products).
      attention: implementation of attention: "xla", or "cudnn" (GPU only).
      logit_chunk: tokens per row whose logits are in memory at the same time; fewer need less memory.
      rollout_quant: weights for sampling: "float" (compute_dtype), or "int8" (the matrices of the blocks in 8 bits).
      kv_cache: KV cache for sampling: "float" (compute_dtype), or "int8" with one scale per token and head.
      init_from: a Hugging Face folder, or one from `rlaif import`, whose shapes, weights and tokenizer the policy starts from.
        From this config it takes only the fields from param_dtype to kv_cache. Empty = train from random weights; a model of 0.5 B
        parameters or more needs the word "scratch" for that.
    """

    vocab_size: Annotated[int, Range(0, 2**24)] = 0
    width: Annotated[int, Range(1, 2**20)] = 128
    ffn: Annotated[int, Range(1, 2**22)] = 384
    layers: Annotated[int, Range(1, 4096)] = 4
    heads: Annotated[int, Range(1, 2**14)] = 4
    kv_heads: Annotated[int, Range(1, 2**14)] = 2
    head_dim: Annotated[int, Range(2, 2**14)] = 32
    rope_theta: Annotated[float, Range(1, 1e12)] = 10_000.0
    norm_eps: Annotated[float, Range(0, 1)] = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = True
    rope_scaling: RopeScaling | None = None
    max_positions: Tokens = 32_768
    param_dtype: str = "float32"
    compute_dtype: str = "float32"
    remat: str = "none"
    attention: str = "xla"
    logit_chunk: Count = 256
    rollout_quant: str = "float"
    kv_cache: str = "float"
    init_from: str = ""

    def __post_init__(self):
        check_fields(self)
        if self.heads % self.kv_heads:
            raise UserError(f"model.heads ({self.heads}) must be a multiple of model.kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise UserError(f"model.head_dim ({self.head_dim}) must be even: rotary positions rotate pairs")
        choices = {
            "remat": ("none", "full", "dots"), "attention": ("xla", "cudnn"), "rollout_quant": ("float", "int8"),
            "kv_cache": ("float", "int8"),
        }  # fmt: skip
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise UserError(f"model.{field} is {getattr(self, field)!r}; expected one of {', '.join(allowed)}")
        for field in ("param_dtype", "compute_dtype"):
            if getattr(self, field) not in ("float32", "bfloat16"):
                raise UserError(f"model.{field} is {getattr(self, field)!r}; expected float32 or bfloat16")

    @property
    def start(self) -> str:
        """The folder that the policy starts from; empty for random weights."""
        return "" if self.init_from == SCRATCH else self.init_from

    def with_vocab(self, tokenizer_size: int) -> ModelConfig:
        """This config with `vocab_size` filled in. UserError if a given size is smaller than the tokenizer's."""
        if self.vocab_size == 0:
            return dataclasses.replace(self, vocab_size=-(-tokenizer_size // 64) * 64)
        if self.vocab_size < tokenizer_size:
            raise UserError(f"model.vocab_size is {self.vocab_size}, but the tokenizer has {tokenizer_size} tokens")
        return self


def parameter_count(cfg: ModelConfig) -> int:
    """Number of parameters of the decoder, without scalar heads."""
    q, kv = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    layer = 2 * cfg.width * q + 2 * cfg.width * kv + 3 * cfg.width * cfg.ffn + 2 * cfg.width
    layer += (q + 2 * kv) * cfg.qkv_bias + 2 * cfg.head_dim * cfg.qk_norm
    embeddings = cfg.vocab_size * cfg.width * (1 if cfg.tied_embeddings else 2)
    return cfg.layers * layer + embeddings + cfg.width


def _qwen25(width, ffn, layers, heads, kv_heads, head_dim, vocab, tied):
    return ModelConfig(
        vocab_size=vocab, width=width, ffn=ffn, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        rope_theta=1e6, qkv_bias=True, tied_embeddings=tied, compute_dtype="bfloat16", remat="full", logit_chunk=128,
    )  # fmt: skip


def _qwen3(width, ffn, layers, heads, tied):
    return ModelConfig(
        vocab_size=151_936, width=width, ffn=ffn, layers=layers, heads=heads, kv_heads=8, head_dim=128,
        rope_theta=1e6, qk_norm=True, tied_embeddings=tied, compute_dtype="bfloat16", remat="full", logit_chunk=128,
    )  # fmt: skip


PRESETS: dict[str, ModelConfig] = {
    "tiny-1m": ModelConfig(width=128, ffn=384, layers=4, heads=4, kv_heads=2, head_dim=32),
    "small-3m": ModelConfig(width=192, ffn=576, layers=6, heads=6, kv_heads=2, head_dim=32),
    "base-12m": ModelConfig(width=384, ffn=1024, layers=6, heads=6, kv_heads=2, head_dim=64),
    "qwen2.5-0.5b": _qwen25(896, 4864, 24, 14, 2, 64, 151_936, True),
    "qwen2.5-1.5b": _qwen25(1536, 8960, 28, 12, 2, 128, 151_936, True),
    "qwen2.5-3b": _qwen25(2048, 11008, 36, 16, 2, 128, 151_936, True),
    "qwen2.5-7b": _qwen25(3584, 18944, 28, 28, 4, 128, 152_064, False),
    "qwen2.5-14b": _qwen25(5120, 13824, 48, 40, 8, 128, 152_064, False),
    "qwen2.5-32b": _qwen25(5120, 27648, 64, 40, 8, 128, 152_064, False),
    "qwen2.5-72b": _qwen25(8192, 29568, 80, 64, 8, 128, 152_064, False),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, True),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, False),
    "llama3-8b": ModelConfig(
        vocab_size=128_256, width=4096, ffn=14336, layers=32, heads=32, kv_heads=8, head_dim=128, rope_theta=5e5,
        norm_eps=1e-5, tied_embeddings=False, max_positions=8192, compute_dtype="bfloat16", remat="full", logit_chunk=128,
    ),
}  # fmt: skip


def preset(name: str) -> ModelConfig:
    """The preset of this name. UserError with the list of presets if there is none."""
    if name not in PRESETS:
        raise UserError(f"unknown model preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
