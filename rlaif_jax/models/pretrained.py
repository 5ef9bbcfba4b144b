"""Loads pretrained models from a Hugging Face folder, or from a folder that `rlaif import` made from one.

An imported folder holds the weights as an Orbax checkpoint (`params/`), already in the right dtype. Every process of a large
mesh reads only its own shards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from rlaif_jax.errors import UserError
from rlaif_jax.models import heads, transformer
from rlaif_jax.models.hf_config import HfConfig, read_config
from rlaif_jax.models.hf_weights import check_finite, load_params, name_table
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.models.quant import keep_layers_in_8_bits
from rlaif_jax.sharding import Placement
from rlaif_jax.sharding.placement import abstract_like

ORBAX_FOLDER = "params"
_NUMERICS = ("param_dtype", "compute_dtype", "remat", "attention", "logit_chunk", "rollout_quant", "kv_cache")


def resolve(cfg: ModelConfig) -> ModelConfig:
    """The config with the shapes of the folder `cfg.init_from`, if it is set. The numerics of `cfg` are kept.

    UserError if `cfg` sets a shape that differs from the folder's, or if the folder holds a sequence classifier.
    """
    if not cfg.start:
        return cfg
    found = policy_config(cfg.init_from)
    for field in dataclasses.fields(ModelConfig):
        given, there = getattr(cfg, field.name), getattr(found.model, field.name)
        if field.name not in (*_NUMERICS, "init_from") and given != there and given != field.default:
            raise UserError(f"model.{field.name} is {given!r}, but {cfg.init_from} has {there!r}; remove or correct the field")
    return with_numerics(found.model, cfg)


def with_numerics(shapes: ModelConfig, numerics: ModelConfig) -> ModelConfig:
    """The config `shapes` with the dtypes, remat, attention, logit chunk and rollout quantisation of `numerics`."""
    return dataclasses.replace(shapes, **{name: getattr(numerics, name) for name in _NUMERICS})


def policy_config(folder: str | Path) -> HfConfig:
    """The config of a folder with a causal language model. UserError if it holds another kind of model."""
    found = read_config(folder)
    if found.scalar:
        raise UserError(f"{folder} holds a sequence classifier; a policy starts from a causal language model")
    return found


def load_policy(folder: str | Path, cfg: ModelConfig, place: Placement, int8: bool = False) -> dict:
    """The weights of a causal language model for `cfg` (see `resolve`), in the shardings of `place`.

    `int8`: see `load_params`; weights in 8 bits cannot be trained.
    """
    policy_config(folder)
    return load_weights(Path(folder), cfg, place, scalar=False, int8=int8)


def foreign_config(folder: str | Path, numerics: ModelConfig, scalar: bool) -> ModelConfig:
    """The config of a judge or reward model from a folder: its shapes and param_dtype, and all other numerics of the run."""
    found = read_config(folder)
    if found.scalar != scalar:
        kinds = ("a causal language model", "a sequence classifier")
        raise UserError(f"{folder} holds {kinds[found.scalar]}; expected {kinds[scalar]}")
    return dataclasses.replace(with_numerics(found.model, numerics), param_dtype=found.model.param_dtype)


def load_scalar(folder: str | Path, cfg: ModelConfig, place: Placement) -> dict:
    """The weights {"model", "head"} of a sequence classifier with one label."""
    return load_weights(Path(folder), cfg, place, scalar=True)


def load_weights(folder: Path, cfg: ModelConfig, place: Placement, scalar: bool, int8: bool = False) -> dict:
    """The weights of a folder (see `load_policy`, `load_scalar`), from its Orbax checkpoint if it has one.

    UserError if a weight is NaN or infinite.
    """
    params = _load(folder, cfg, place, scalar, int8)
    if not all_finite(params):
        raise UserError(f"{folder}: the weights contain NaN or infinity; get an intact copy of the model")
    return params


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def all_finite(tree: Any) -> bool:
    """Whether no number in these arrays is NaN or infinite."""
    return bool(_all_finite(tree))


def _load(folder: Path, cfg: ModelConfig, place: Placement, scalar: bool, int8: bool) -> dict:
    if not (folder / ORBAX_FOLDER).exists():
        return load_params(folder, cfg, place, scalar, int8)
    axes = heads.logical_axes(cfg) if scalar else transformer.logical_axes(cfg)
    abstract = jax.eval_shape(lambda: (heads.init if scalar else transformer.init)(cfg, jax.random.key(0)))
    target = abstract_like(abstract, place.tree(axes, abstract))
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore((folder / ORBAX_FOLDER).absolute(), target)
    check_finite(folder, params, name_table(cfg, scalar), place)
    return keep_layers_in_8_bits(params, axes, place) if int8 else params


def source_of(folder: str | Path) -> Mapping[str, Any]:
    """The config.json of a folder, unchanged."""
    return read_config(folder).raw
