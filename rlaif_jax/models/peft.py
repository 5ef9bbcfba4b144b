"""LoRA adapters in PEFT's format: adapter_config.json and adapter_model.safetensors, with PEFT's tensor names."""

from __future__ import annotations

import json
import re
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
from rlaif_jax.models.hf_weights import LAYER_NAMES
from rlaif_jax.models.lora import LoraConfig, ranks
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.models.transformer import layer_table

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MODULES = {name: full.removesuffix(".weight") for name, full in LAYER_NAMES.items() if full.endswith("proj.weight")}
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
    state_files.write_text(folder / _CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _name(layer: int, name: str, side: str) -> str:
    return f"base_model.model.model.layers.{layer}.{_MODULES[name]}.lora_{side}.weight"


def _config(found: Mapping[str, int], lora: LoraConfig, base: str, scalar: bool) -> dict[str, Any]:
    """PEFT's config for the ranks `found`. `r` is the first matrix's rank; rank_pattern lists the matrices with another one."""
    first = next(iter(found.values()))
    return {
        "peft_type": "LORA", "task_type": "SEQ_CLS" if scalar else "CAUSAL_LM", "base_model_name_or_path": base,
        "r": first, "lora_alpha": lora.alpha, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "target_modules": [_module(name) for name in found],
        "rank_pattern": {_module(name): rank for name, rank in found.items() if rank != first},
        "alpha_pattern": {}, "modules_to_save": ["score"] if scalar else None, "use_rslora": False, "use_dora": False,
    }  # fmt: skip


def _module(name: str) -> str:
    return _MODULES[name].rpartition(".")[2]


def load_adapter(folder: str | Path, cfg: ModelConfig) -> tuple[dict, LoraConfig, np.ndarray | None]:
    """(adapter, its config, the score head (D,) of a reward model or None), as NumPy arrays in float32.

    UserError for an unsupported variant of LoRA, and for tensors that are missing, unexpected or of a wrong shape.
    """
    folder = Path(folder)
    lora = _read_config(folder, cfg)
    try:
        with safe_open(folder / _WEIGHTS, "numpy") as file:
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / _WEIGHTS}: cannot be read as safetensors: {error}") from error
    score = tensors.pop(_SCORE, None)
    names = {n: {side: [_name(i, n, side.upper()) for i in range(cfg.layers)] for side in "ab"} for n in ranks(cfg, lora)}
    wanted = {t for sides in names.values() for part in sides.values() for t in part}
    if missing := sorted(wanted - tensors.keys()):
        raise UserError(f"{folder}: the adapter lacks {listed(missing)}")
    if extra := sorted(tensors.keys() - wanted):
        raise UserError(f"{folder}: not part of the adapter: {listed(extra)}")
    layers = {n: {side: np.stack([tensors[t].T for t in part]) for side, part in sides.items()} for n, sides in names.items()}
    _check_shapes(folder, layers, cfg, lora)
    return {"layers": layers}, lora, None if score is None else score[0]


def _check_shapes(folder: Path, layers: dict, cfg: ModelConfig, lora: LoraConfig) -> None:
    for name, rank in ranks(cfg, lora).items():
        inputs, outputs = layer_table(cfg)[name][0]
        found = layers[name]["a"].shape, layers[name]["b"].shape
        expected = (cfg.layers, inputs, rank), (cfg.layers, rank, outputs)
        if found != expected:
            raise UserError(f"{folder}: {_module(name)} has shapes {found}, expected {expected}")


def _read_config(folder: Path, cfg: ModelConfig) -> LoraConfig:
    path = folder / _CONFIG
    if not path.exists():
        raise UserError(f"{folder}: it has no {_CONFIG}; expected the folder of a PEFT adapter")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected an object, found {type(raw).__name__}")
    plain = (("peft_type", "LORA"), ("bias", "none"), ("use_dora", False), ("use_rslora", False), ("fan_in_fan_out", False))
    for field, expected in plain:
        if raw.get(field, expected) != expected:
            raise UserError(f"{path}: {field} is {raw[field]!r}, which is not supported; expected {expected!r}")
    if raw.get("alpha_pattern") or raw.get("layers_to_transform") is not None:
        raise UserError(f"{path}: alpha_pattern and layers_to_transform are not supported")
    if raw.get("init_lora_weights", True) not in (True, False, "gaussian"):  # other methods change the base's weights
        raise UserError(f"{path}: init_lora_weights is {raw['init_lora_weights']!r}, which is not supported; expected true")
    ranks_of = {} if raw.get("rank_pattern") is None else raw["rank_pattern"]
    if not isinstance(ranks_of, dict):
        raise UserError(f"{path}: rank_pattern is {ranks_of!r}; expected an object")
    numbers = [("r", raw.get("r"), int), ("lora_alpha", raw.get("lora_alpha"), (int, float))]
    for field, value, kind in numbers + [(f"rank_pattern: {module}", rank, int) for module, rank in ranks_of.items()]:
        if not isinstance(value, kind) or isinstance(value, bool) or value <= 0:
            raise UserError(f"{path}: {field} is {value!r}; expected a positive number")
    targets = _targets(raw.get("target_modules"), path)
    return LoraConfig({f"layers/{n}": ranks_of.get(_module(n), raw["r"]) for n in targets}, float(raw["lora_alpha"]))


def _targets(modules: Any, path: Path) -> list[str]:
    """The matrices that PEFT's `target_modules` selects.

    It is "all-linear", a regular expression that must match a full path, or a list of modules.
    """
    if modules == "all-linear":
        return list(_MODULES)
    if isinstance(modules, str):
        try:
            found = [name for name, full in _MODULES.items() if re.fullmatch(modules, f"model.layers.0.{full}")]
        except re.error as error:
            raise UserError(f"{path}: target_modules is {modules!r}, which is not a regular expression: {error}") from error
        if not found:
            raise UserError(f"{path}: target_modules {modules!r} matches no matrix of this model's blocks")
        return found
    if not isinstance(modules, list) or not modules:
        raise UserError(f"{path}: target_modules is {modules!r}; expected the names of modules")

    def meant(module: str) -> set[str]:
        return {name for name, full in _MODULES.items() if f".{full}".endswith(f".{module}")}

    if wrong := [str(m) for m in modules if not meant(m)]:
        names = ", ".join(map(_module, _MODULES))
        raise UserError(f"{path}: target_modules has unknown modules: {listed(wrong)}; this model's blocks have {names}")
    found = set().union(*map(meant, modules))
    return [name for name in _MODULES if name in found]
