"""Converts config.json of a Hugging Face folder to `ModelConfig` and back, for Qwen2/2.5, Qwen3, Llama and Mistral."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif_jax.errors import UserError
from rlaif_jax.models.hf_files import hub_name_help, read_object, shown
from rlaif_jax.models.model_config import ModelConfig, RopeScaling


@dataclasses.dataclass(frozen=True)
class Family:
    """One Llama-like family of Hugging Face models: the facts that its config.json leaves out.

    Attributes:
      name: the prefix of its classes in transformers, such as "Qwen2" in Qwen2ForCausalLM.
      positions: default of max_position_embeddings.
      qkv_bias, qk_norm: whether it has biases on queries, keys and values; whether it has RMS norms on queries and keys.
      head_dim: default of head_dim; 0 means width / heads.
      window: when attention is limited to `sliding_window`: "always", "never", or "flag" (if `use_sliding_window` is true).
      default_window: default of sliding_window; 0 means no window.
    """

    name: str
    positions: int
    qkv_bias: bool = False
    qk_norm: bool = False
    head_dim: int = 0
    window: str = "flag"
    default_window: int = 0


# model_type -> family. To add a family of the same architecture, add an entry (docs/extending.md).
FAMILIES: dict[str, Family] = {
    "qwen2": Family("Qwen2", 32_768, qkv_bias=True),
    "qwen3": Family("Qwen3", 32_768, qk_norm=True, head_dim=128),
    "llama": Family("Llama", 2048, window="never"),
    "mistral": Family("Mistral", 131_072, window="always", default_window=4096),
}
_HEADS = {"ForCausalLM": False, "ForSequenceClassification": True}
_DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float32"}  # stored dtype -> param_dtype
# Far above the largest known models. A number beyond is a mistake, or made to fill the memory.
_MOST = {
    "vocab_size": 2**22, "hidden_size": 2**17, "intermediate_size": 2**20, "num_hidden_layers": 2**11,
    "num_attention_heads": 2**12, "num_key_value_heads": 2**12, "head_dim": 2**12, "max_position_embeddings": 2**30,
    "sliding_window": 2**30, "max_window_layers": 2**11,
}  # fmt: skip
_LARGEST = {"rms_norm_eps": 1.0, "rope_theta": 1e15}


@dataclasses.dataclass(frozen=True)
class HfConfig:
    """The content of a config.json.

    Attributes:
      model: the decoder as our config.
      scalar: whether it is a sequence classifier with one label.
      dtype: of the stored weights.
      raw: the file as it is.
    """

    model: ModelConfig
    scalar: bool
    dtype: str
    raw: Mapping[str, Any]


def read_config(folder: str | Path) -> HfConfig:
    """Reads FOLDER/config.json. UserError if it is missing, is not JSON, or describes an unsupported model."""
    path = Path(folder) / "config.json"
    if not path.exists():
        hint = hub_name_help(folder)
        raise UserError(f"{folder}: it has no config.json; expected the folder of a Hugging Face model{hint}")
    return from_hf(read_object(path), str(path))


def from_hf(raw: Mapping[str, Any], where: str = "config.json") -> HfConfig:
    """Our config for a config.json. `model.param_dtype` holds the stored weights exactly.

    Errors: UserError for another architecture, and for every option that changes the arithmetic and is not implemented.
    """
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{where}: model_type is {kind!r}; expected one of {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    _refuse_unsupported(raw, kind, where)
    width, heads = _integer(raw, "hidden_size", where), _integer(raw, "num_attention_heads", where)
    dtype = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    if dtype not in _DTYPES:
        raise UserError(f"{where}: dtype is {dtype[:80]!r}; expected one of {', '.join(_DTYPES)}")
    scalar = _is_scalar(raw, kind, where)
    try:
        theta, scaling = _rope(raw, where)
        model = ModelConfig(
            vocab_size=_integer(raw, "vocab_size", where), width=width, ffn=_integer(raw, "intermediate_size", where),
            layers=_integer(raw, "num_hidden_layers", where), heads=heads,
            kv_heads=_integer(raw, "num_key_value_heads", where, heads),
            head_dim=_integer(raw, "head_dim", where, family.head_dim or width // heads), rope_theta=theta,
            rope_scaling=scaling, norm_eps=_number(raw, "rms_norm_eps", where, 1e-6), qkv_bias=family.qkv_bias,
            # A scalar model has no output matrix, even if the config says that it is untied.
            qk_norm=family.qk_norm, tied_embeddings=scalar or _flag(raw, "tie_word_embeddings", where),
            max_positions=_integer(raw, "max_position_embeddings", where, family.positions), param_dtype=_DTYPES[dtype],
        )  # fmt: skip
    except UserError as error:  # the dataclasses name our field, not the file
        raise UserError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
    return HfConfig(model, scalar, dtype, raw)


def to_hf(
    cfg: ModelConfig, *, scalar: bool, dtype: str, eos_ids: Sequence[int], pad_id: int, source: Mapping[str, Any] | None = None
) -> dict[str, Any]:  # fmt: skip
    """The config.json of an exported model, in the spelling that transformers 4 and 5 and vLLM read.

    `source` is the config.json that the weights were loaded from, if any. Its fields that we do not set (initialiser,
    token ids ...) are kept. UserError for `qkv_bias` with `qk_norm`, which no supported family has.
    """
    if cfg.qkv_bias and cfg.qk_norm:
        raise UserError("model.qkv_bias with model.qk_norm: no Hugging Face family has both; this model cannot be exported")
    family = "qwen3" if cfg.qk_norm else "qwen2" if cfg.qkv_bias else "llama"
    if source and source.get("model_type") in (family, "mistral" if family == "llama" else family):
        family = source["model_type"]
    else:
        source = None
    ours = {
        "model_type": family, "architectures": [FAMILIES[family].name + _head_name(scalar)], "torch_dtype": dtype,
        "vocab_size": cfg.vocab_size, "hidden_size": cfg.width, "intermediate_size": cfg.ffn,
        "num_hidden_layers": cfg.layers, "num_attention_heads": cfg.heads, "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_dim, "hidden_act": "silu", "rms_norm_eps": cfg.norm_eps, "rope_theta": cfg.rope_theta,
        "rope_scaling": _rope_scaling(cfg), "max_position_embeddings": cfg.max_positions, "attention_dropout": 0.0,
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else list(eos_ids), "pad_token_id": pad_id, "use_cache": True,
    }  # fmt: skip
    if not (scalar and source):
        ours["tie_word_embeddings"] = cfg.tied_embeddings
    ours |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}} if scalar else {}
    ours |= {"llama": {"attention_bias": False, "mlp_bias": False}, "qwen3": {"attention_bias": False}}.get(family, {})
    if family != "llama":
        ours |= {"sliding_window": None, "use_sliding_window": False} if family != "mistral" else {"sliding_window": None}
    kept = {k: v for k, v in (source or {}).items() if k not in _NOT_KEPT}
    return kept | {"bos_token_id": kept.get("bos_token_id")} | ours


_NOT_KEPT = ("dtype", "rope_parameters", "layer_types", "transformers_version", "_name_or_path", "id2label", "label2id")


def _head_name(scalar: bool) -> str:
    return next(name for name, is_scalar in _HEADS.items() if is_scalar == scalar)


def _integer(raw: Mapping[str, Any], field: str, where: str, default: int | None = None) -> int:
    value = default if raw.get(field) is None else raw[field]
    if type(value) is not int or not 1 <= value <= _MOST[field]:
        raise UserError(f"{where}: {field} is {shown(value)}; expected a positive integer, at most {_MOST[field]:,}")
    return value


def _number(raw: Mapping[str, Any], field: str, where: str, default: float | None = None) -> float:
    value = default if raw.get(field) is None else raw[field]
    most = _LARGEST.get(field, 2**30)
    if type(value) not in (int, float) or not 0 < value <= most:
        raise UserError(f"{where}: {field} is {shown(value)}; expected a positive number, at most {most:g}")
    return float(value)


def _flag(raw: Mapping[str, Any], field: str, where: str) -> bool:
    value = raw.get(field)
    if value not in (None, True, False) or type(value) not in (bool, type(None)):
        raise UserError(f"{where}: {field} is {shown(value)}; expected true or false")
    return bool(value)


def _is_scalar(raw: Mapping[str, Any], kind: str, where: str) -> bool:
    """Whether the folder holds a sequence classifier. UserError if it has more than one label."""
    names = raw.get("architectures")
    names = [FAMILIES[kind].name + "ForCausalLM"] if names is None or names == [] else names
    known = {FAMILIES[kind].name + suffix: scalar for suffix, scalar in _HEADS.items()}
    if not isinstance(names, list) or not isinstance(names[0], str) or names[0] not in known:
        raise UserError(f"{where}: architectures is {shown(names)}; expected one of {', '.join(known)} for {kind}")
    scalar = known[names[0]]
    named = raw.get("id2label") or {"0": "", "1": ""}  # transformers' default is two
    labels = raw.get("num_labels") or (len(named) if isinstance(named, dict) else named)
    if scalar and (labels != 1 or isinstance(labels, bool)):
        raise UserError(f"{where}: a sequence classifier with {shown(labels)} labels; a reward model has exactly one")
    return scalar


def _rope_parameters(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise UserError(f"{where}: rope scaling is {shown(parameters)}; expected an object with rope_type")
    return parameters


def _rope(raw: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """Base and scaling, read from `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling` (older)."""
    parameters = _rope_parameters(raw, where)
    theta = _number(parameters if parameters.get("rope_theta") else raw, "rope_theta", where, 10_000.0)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3"):
        raise UserError(f"{where}: rope scaling of type {shown(kind)} is not supported; expected default, linear or llama3")
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")[: 1 if kind == "linear" else 4]
    if missing := [name for name in names if parameters.get(name) is None]:
        raise UserError(f"{where}: rope scaling of type {kind} lacks {', '.join(missing)}")
    numbers = [_number(parameters, name, f"{where}: rope scaling") for name in names]
    return theta, RopeScaling(kind, *numbers[:3], *(int(n) for n in numbers[3:]))


def _rope_scaling(cfg: ModelConfig) -> dict[str, Any] | None:
    scaling = cfg.rope_scaling
    if scaling is None:
        return None
    if scaling.type == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor, "original_max_position_embeddings": scaling.original_positions,
    }  # fmt: skip


def _refuse_unsupported(raw: Mapping[str, Any], kind: str, where: str) -> None:
    """UserError for every option that changes the arithmetic and is not implemented."""
    family = FAMILIES[kind]
    partial = _rope_parameters(raw, where).get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    wrong = (
        ("hidden_act", raw.get("hidden_act", "silu") not in ("silu", "swish"), "silu"),
        ("attention_bias", not family.qkv_bias and _flag(raw, "attention_bias", where), "false"),
        ("mlp_bias", _flag(raw, "mlp_bias", where), "false"),
        ("quantization_config", raw.get("quantization_config") is not None, "none: load unquantised weights"),
        ("partial_rotary_factor", partial not in (None, 1.0), "1"),
    )
    for field, is_wrong, expected in wrong:
        if is_wrong:
            raise UserError(f"{where}: {field} is {shown(raw.get(field, partial))}, which is not supported; expected {expected}")
    window, positions = raw.get("sliding_window"), _integer(raw, "max_position_embeddings", where, family.positions)
    if "sliding_window" not in raw:
        window = family.default_window or None
    window = window if window is None else _integer(raw, "sliding_window", where, window)
    used = family.window == "always" or (family.window == "flag" and _flag(raw, "use_sliding_window", where))
    layers = raw.get("layer_types")
    if layers is not None:
        if not isinstance(layers, list) or any(kind not in ("full_attention", "sliding_attention") for kind in layers):
            raise UserError(f"{where}: layer_types is {shown(layers)}; expected a list of full_attention or sliding_attention")
        used = "sliding_attention" in layers
    elif used and family.window == "flag":
        full = 0 if raw.get("max_window_layers", 28) in (0, None) else _integer(raw, "max_window_layers", where, 28)
        used = _integer(raw, "num_hidden_layers", where) > full
    if used and window is not None and window < positions:
        raise UserError(
            f"{where}: sliding_window is {window} with {positions} positions; sliding-window attention is not supported. Texts of "
            f"at most {window} tokens do not need it: for these, set sliding_window to null and max_position_embeddings to "
            f"{window} in that file"
        )
