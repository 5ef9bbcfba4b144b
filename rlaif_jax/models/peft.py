"""LoRA adapters in PEFT's format: adapter_config.json and adapter_model.safetensors, with PEFT's tensor names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rlaif_jax import state_files
from rlaif_jax.errors import UserError
from rlaif_jax.models.hf_files import listed
from rlaif_jax.models.hf_weights import READABLE
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.models.peft_config import CONFIG, MODULES, module, read_ranks
from rlaif_jax.models.transformer import layer_table

_WEIGHTS = "adapter_model.safetensors"
_SCORE = "base_model.model.score.weight"


def save_adapter(
    adapter: Mapping[str, Any], cfg: ModelConfig, lora: LoraConfig, folder: str | Path, *, base: str, score: Any = None
) -> None:
    """Writes the adapter of the model `base` (its name or folder). `score` (D,) is the head of a reward model, if it is one."""
    tensors = {}
    for name, node in adapter["layers"].items():
        a, b = (np.asarray(jax.device_get(node[side])) for side in "ab")
        for i in range(cfg.layers):
            tensors[_name(i, name, "A")] = np.ascontiguousarray(a[i].T)
            tensors[_name(i, name, "B")] = np.ascontiguousarray(b[i].T)
    if score is not None:
        tensors[_SCORE] = np.asarray(jax.device_get(score))[None]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    found = {name: node["a"].shape[-1] for name, node in adapter["layers"].items()}
    config = _config(found, lora, base, scalar=score is not None)
    state_files.write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _name(layer: int, name: str, side: str) -> str:
    return f"base_model.model.model.layers.{layer}.{MODULES[name]}.lora_{side}.weight"


def _config(found: Mapping[str, int], lora: LoraConfig, base: str, scalar: bool) -> dict[str, Any]:
    """PEFT's config for the ranks `found`. `r` is the first matrix's rank; rank_pattern lists the matrices with another one."""
    first = next(iter(found.values()))
    return {
        "peft_type": "LORA", "task_type": "SEQ_CLS" if scalar else "CAUSAL_LM", "base_model_name_or_path": base,
        "r": first, "lora_alpha": lora.alpha, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "target_modules": [module(name) for name in found],
        "rank_pattern": {module(name): rank for name, rank in found.items() if rank != first},
        "alpha_pattern": {}, "modules_to_save": ["score"] if scalar else None, "use_rslora": False, "use_dora": False,
    }  # fmt: skip


def load_adapter(folder: str | Path, cfg: ModelConfig) -> tuple[dict, LoraConfig, np.ndarray | None]:
    """(adapter, its config, the score head (D,) of a reward model or None), as NumPy arrays in float32.

    A matrix has one rank here, the largest of its layers: smaller ones are filled up with zeros, and other scales are put into
    `b`. UserError for an unsupported variant of LoRA, and for tensors that are missing, unexpected, of a wrong shape, or with
    NaN or infinity.
    """
    folder = Path(folder)
    scales, alpha = read_ranks(folder, cfg.layers)
    tensors = _read(folder, _shapes(cfg, scales))
    layers = {}
    for name, of_layer in scales.items():
        rank = max(r for r, _ in of_layer)
        sides: dict[str, list[np.ndarray]] = {"a": [], "b": []}
        for i, (r, scale) in enumerate(of_layer):
            inputs, outputs = layer_table(cfg)[name][0]
            a, b = np.zeros((inputs, rank), np.float32), np.zeros((rank, outputs), np.float32)
            if r:
                a[:, :r], b[:r] = tensors[_name(i, name, "A")].T, tensors[_name(i, name, "B")].T
                if (r, scale) != (rank, alpha):
                    b *= (scale / r) / (alpha / rank)
            sides["a"].append(a)
            sides["b"].append(b)
        layers[name] = {side: np.stack(parts) for side, parts in sides.items()}
    lora = LoraConfig({f"layers/{name}": max(r for r, _ in of_layer) for name, of_layer in scales.items()}, alpha)
    score = tensors.get(_SCORE)
    return {"layers": layers}, lora, None if score is None else score[0]


def _shapes(cfg: ModelConfig, scales: dict[str, list[tuple[int, float]]]) -> dict[str, tuple[int, int]]:
    """Shape of every tensor that an adapter with these ranks has."""
    found = {}
    for name, of_layer in scales.items():
        inputs, outputs = layer_table(cfg)[name][0]
        for i, (rank, _) in enumerate(of_layer):
            if rank:
                found[_name(i, name, "A")], found[_name(i, name, "B")] = (rank, inputs), (outputs, rank)
    return found


def _read(folder: Path, wanted: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    """The tensors in float32, checked before any is read. A score head is one row."""
    try:
        with safe_open(folder / _WEIGHTS, "numpy") as file:
            names = set(file.keys())
            if missing := sorted(wanted.keys() - names):
                raise UserError(f"{folder}: the adapter lacks {listed(missing)}")
            if extra := sorted(names - wanted.keys() - {_SCORE}):
                raise UserError(f"{folder}: not part of the adapter: {listed(extra)}")
            for name in names:
                part = file.get_slice(name)
                shape, kind = tuple(part.get_shape()), part.get_dtype()
                expected = wanted.get(name, (1, *shape[1:2]))
                if shape != expected or kind not in READABLE:
                    raise UserError(f"{folder}: {name} has shape {shape} and dtype {kind}, expected {expected} and a float")
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / _WEIGHTS}: cannot be read as safetensors: {error}") from error
    if wrong := sorted(name for name, tensor in tensors.items() if not np.isfinite(tensor).all()):
        raise UserError(f"{folder}: the adapter contains NaN or infinity: {listed(wrong)}")
    return tensors
