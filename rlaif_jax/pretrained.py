"""Models that were trained elsewhere: a Hugging Face folder, or one that `rlaif import` made of it.

An imported folder is the same folder with its weights as an Orbax checkpoint (`params/`), already in the wanted dtype:
every process of a large mesh reads only its own part of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from rich.console import Console

from rlaif_jax.checkpoint import abstract_like
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.errors import UserError
from rlaif_jax.experiment import write_json
from rlaif_jax.models import heads, transformer
from rlaif_jax.models.hf_config import HfConfig, read_config
from rlaif_jax.models.hf_weights import load_params
from rlaif_jax.models.model_config import ModelConfig, parameter_count
from rlaif_jax.models.quant import keep_layers_in_8_bits
from rlaif_jax.sharding import MeshConfig, Placement, make_mesh

_ORBAX = "params"
_NUMERICS = ("param_dtype", "compute_dtype", "remat", "attention", "logit_chunk", "rollout_weights", "kv_cache")


def resolve(cfg: ModelConfig) -> ModelConfig:
    """The config with the shapes of `cfg.init_from`, if it names a folder; numerics stay as they are.

    UserError where a shape is given beside it and differs, or the folder holds a sequence classifier.
    """
    if not cfg.init_from:
        return cfg
    found = policy_config(cfg.init_from)
    for field in dataclasses.fields(ModelConfig):
        given, there = getattr(cfg, field.name), getattr(found.model, field.name)
        if field.name not in (*_NUMERICS, "init_from") and given != there and given != field.default:
            raise UserError(f"model.{field.name} is {given!r}, but {cfg.init_from} has {there!r}; leave it out or mend it")
    return with_numerics(found.model, cfg)


def with_numerics(shapes: ModelConfig, numerics: ModelConfig) -> ModelConfig:
    """The first config with dtypes, remat, attention and logit chunk of the second."""
    return dataclasses.replace(shapes, **{name: getattr(numerics, name) for name in _NUMERICS})


def policy_config(folder: str | Path) -> HfConfig:
    """The config of a folder with a causal language model; UserError if it holds anything else."""
    found = read_config(folder)
    if found.scalar:
        raise UserError(f"{folder} holds a sequence classifier; a policy starts from a causal language model")
    return found


def load_policy(folder: str | Path, cfg: ModelConfig, place: Placement, int8: bool = False) -> dict:
    """The weights of a causal language model as `cfg` (see `resolve`) says, in the shardings of `place`.

    `int8`: see `load_params`; not for weights that are trained.
    """
    policy_config(folder)
    return _load(Path(folder), cfg, place, scalar=False, int8=int8)


def foreign_config(folder: str | Path, numerics: ModelConfig, scalar: bool) -> ModelConfig:
    """The config of a judge or reward model from a folder: its shapes and dtype, computed as the run computes."""
    found = read_config(folder)
    if found.scalar != scalar:
        kinds = ("a causal language model", "a sequence classifier")
        raise UserError(f"{folder} holds {kinds[found.scalar]}; expected {kinds[scalar]}")
    return dataclasses.replace(with_numerics(found.model, numerics), param_dtype=found.model.param_dtype)


def load_scalar(folder: str | Path, cfg: ModelConfig, place: Placement) -> dict:
    """{"model", "head"} of a sequence classifier with one label."""
    return _load(Path(folder), cfg, place, scalar=True)


def _load(folder: Path, cfg: ModelConfig, place: Placement, scalar: bool, int8: bool = False) -> dict:
    if not (folder / _ORBAX).exists():
        return load_params(folder, cfg, place, scalar, int8)
    axes = heads.logical_axes(cfg) if scalar else transformer.logical_axes(cfg)
    abstract = jax.eval_shape(lambda: (heads.init if scalar else transformer.init)(cfg, jax.random.key(0)))
    target = abstract_like(abstract, place.tree(axes, abstract))
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore((folder / _ORBAX).absolute(), target)
    return keep_layers_in_8_bits(params, axes, place) if int8 else params


def source_of(folder: str | Path) -> Mapping[str, Any]:
    """The config.json of a folder, as it stands there."""
    return read_config(folder).raw


def run_import(args: argparse.Namespace, console: Console) -> None:
    """`rlaif import`: checks a Hugging Face folder and writes it with its weights as a sharded checkpoint."""
    found, out = read_config(args.folder), Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; choose another --out")
    tokenizer = Tokenizer.load(args.folder)
    model = dataclasses.replace(found.model, param_dtype=args.dtype or found.model.param_dtype)
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(f"{args.folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.vocab_size}")
    place = Placement(make_mesh(MeshConfig(data=1, fsdp=-1)))
    params = _load(Path(args.folder), model, place, found.scalar)
    if not _finite(params):
        raise UserError(f"{args.folder}: the weights hold NaN or infinity")
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((part / _ORBAX).absolute(), params)
    tokenizer.save(part)
    write_json(part / "config.json", {**found.raw, "torch_dtype": model.param_dtype, "dtype": model.param_dtype})
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()
    part.rename(out)
    size = f"{sum(x.nbytes for x in jax.tree.leaves(params)) / 2**20:,.0f} MiB of {model.param_dtype}"
    kind = "reward model" if found.scalar else "language model"
    console.print(f"{found.raw['model_type']} {kind}, {parameter_count(model):,} parameters, {size}")
    console.print(f"{out}: start from it with --set model.init_from={out}", soft_wrap=True, markup=False)


def _finite(params: Any) -> bool:
    """Whether every weight is a number."""
    return bool(jax.jit(lambda p: jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(p)])))(params))
