"""adapter_config.json of PEFT: which matrices of which layers an adapter changes, with which ranks and scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif_jax.errors import UserError
from rlaif_jax.models.bounded import ask
from rlaif_jax.models.hf_files import listed, read_object, shown
from rlaif_jax.models.hf_weights import LAYER_NAMES

CONFIG = "adapter_config.json"
MODULES = {name: full.removesuffix(".weight") for name, full in LAYER_NAMES.items() if full.endswith("proj.weight")}
# Fields that do not change what an adapter computes, or that are read here or seen in its tensors. Every other field must be
# off: a variant of LoRA that we do not know would be computed as plain LoRA.
_KNOWN = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
})  # fmt: skip
_OFF = (None, False, 0, "", [], {})
_MOST_RANK, _MOST_ALPHA = 2**14, 1e6

Scales = dict[str, list[tuple[int, float]]]


def read_ranks(folder: Path, layers: int) -> tuple[Scales, float]:
    """Matrix -> (rank, lora_alpha) of each layer, rank 0 where the adapter has none; and the config's lora_alpha.

    Names and patterns are matched with modules as PEFT does. UserError for an unsupported variant of LoRA.
    """
    path = folder / CONFIG
    if not path.exists():
        raise UserError(f"{folder}: it has no {CONFIG}; expected the folder of a PEFT adapter")
    raw = read_object(path)
    _refuse_variants(raw, path)
    rank = _positive(raw.get("r"), "r", path, int, _MOST_RANK)
    alpha = _positive(raw.get("lora_alpha"), "lora_alpha", path, (int, float), _MOST_ALPHA)
    ranks = _numbers(raw, "rank_pattern", path, int, _MOST_RANK)
    alphas = _numbers(raw, "alpha_pattern", path, (int, float), _MOST_ALPHA)
    every = {name: [f"model.layers.{i}.{full}" for i in range(layers)] for name, full in MODULES.items()}
    modules = [module for of_layer in every.values() for module in of_layer]
    chosen = _targets(raw.get("target_modules"), modules, path)
    rank_of, alpha_of = (_values(*pair, modules, path) for pair in (("rank_pattern", ranks), ("alpha_pattern", alphas)))
    found = {
        name: [(int(rank_of.get(m, rank)) if m in chosen else 0, float(alpha_of.get(m, alpha))) for m in of_layer]
        for name, of_layer in every.items() if not chosen.isdisjoint(of_layer)
    }  # fmt: skip
    return found, float(alpha)


def module(name: str) -> str:
    """PEFT's name of one of our matrices ("q_proj")."""
    return MODULES[name].rpartition(".")[2]


def _refuse_variants(raw: Mapping[str, Any], path: Path) -> None:
    plain = (("peft_type", "LORA"), ("bias", "none"), ("use_dora", False), ("use_rslora", False), ("fan_in_fan_out", False))
    for field, expected in plain:
        if raw.get(field, expected) != expected:
            raise UserError(f"{path}: {field} is {shown(raw[field])}, which is not supported; expected {expected!r}")
    if raw.get("init_lora_weights", True) not in (True, False, "gaussian"):  # other methods change the base's weights
        raise UserError(f"{path}: init_lora_weights is {shown(raw['init_lora_weights'])}, which is not supported; expected true")
    for field in sorted(raw.keys() - _KNOWN):
        if raw[field] not in _OFF:
            raise UserError(f"{path}: {field} is {shown(raw[field])}, which is not supported; only plain LoRA is")


def _positive(value: Any, field: str, path: Path, kind: Any, most: float) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value <= most:
        raise UserError(f"{path}: {field} is {shown(value)}; expected a positive number, at most {most:g}")
    return value


def _numbers(raw: Mapping[str, Any], field: str, path: Path, kind: Any, most: float) -> dict[str, Any]:
    found = {} if raw.get(field) is None else raw[field]
    if not isinstance(found, dict):
        raise UserError(f"{path}: {field} is {shown(found)}; expected an object")
    return {key: _positive(value, f"{field}: {key[:80]}", path, kind, most) for key, value in found.items()}


def _matches(patterns: Sequence[str], names: Sequence[str], field: str, path: Path) -> list[set[str]]:
    """The names that each regular expression matches as a whole."""
    try:
        found = ask({"patterns": list(patterns), "names": list(names)}) if patterns else []
    except TimeoutError as error:
        raise UserError(f"{path}: {field} {error} to match") from error
    if isinstance(found, str):
        raise UserError(f"{path}: {field} is {shown(list(patterns))}, which is not a regular expression: {found[:200]}")
    return [{names[i] for i in matched} for matched in found]


def _values(field: str, pattern: Mapping[str, Any], modules: Sequence[str], path: Path) -> dict[str, Any]:
    """Module -> the value of the first key that means it: its name, the end of its path, or a regular expression of these."""
    found = _matches([rf"(.*\.)?({key})" for key in pattern], modules, field, path)
    return {module: value for value, matched in reversed(list(zip(pattern.values(), found, strict=True))) for module in matched}


def _targets(chosen: Any, modules: Sequence[str], path: Path) -> set[str]:
    """The modules that PEFT's `target_modules` selects: "all-linear", a regular expression of full paths, or a list of names."""
    if chosen == "all-linear":
        return set(modules)
    if isinstance(chosen, str):
        (found,) = _matches([chosen], modules, "target_modules", path)
        if not found:
            raise UserError(f"{path}: target_modules {shown(chosen)} matches no matrix of this model's blocks")
        return found
    if not isinstance(chosen, list) or not chosen:
        raise UserError(f"{path}: target_modules is {shown(chosen)}; expected the names of modules")
    ends = {m: {m.split(".", n)[-1] for n in range(m.count(".") + 1)} for m in modules}
    known = set().union(*ends.values())
    if wrong := [str(m)[:80] for m in chosen if not isinstance(m, str) or m not in known]:
        ours = ", ".join(map(module, MODULES))
        raise UserError(f"{path}: target_modules has unknown modules: {listed(wrong)}; this model's blocks have {ours}")
    return {m for m in modules if not ends[m].isdisjoint(chosen)}
