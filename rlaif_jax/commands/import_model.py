"""`rlaif import`: converts a Hugging Face folder into a sharded checkpoint, which loads faster on many devices."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from rich.console import Console

from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.errors import UserError
from rlaif_jax.models.hf_config import read_config
from rlaif_jax.models.model_config import parameter_count
from rlaif_jax.models.pretrained import ORBAX_FOLDER, load_weights
from rlaif_jax.runs.folder import write_json
from rlaif_jax.sharding.mesh import MeshConfig, make_mesh
from rlaif_jax.sharding.placement import Placement


def import_model(folder: str | Path, out: str | Path, *, dtype: str = "", console: Console) -> None:
    """Checks a Hugging Face folder and writes a copy with a sharded checkpoint of its weights to the new folder `out`.

    `dtype`: float32 or bfloat16; empty: the dtype of the files.
    """
    found, out = read_config(folder), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; choose another --out")
    model = dataclasses.replace(found.model, param_dtype=dtype or found.model.param_dtype)
    tokenizer = Tokenizer.load(folder, model.vocab_size)
    place = Placement(make_mesh(MeshConfig(data=1, fsdp=-1)))
    params = load_weights(Path(folder), model, place, found.scalar)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((part / ORBAX_FOLDER).absolute(), params)
    tokenizer.save(part)
    write_json(part / "config.json", {**found.raw, "torch_dtype": model.param_dtype, "dtype": model.param_dtype})
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()
    part.rename(out)
    size = f"{sum(x.nbytes for x in jax.tree.leaves(params)) / 2**20:,.0f} MiB of {model.param_dtype}"
    kind = "reward model" if found.scalar else "language model"
    console.print(f"{found.raw['model_type']} {kind}, {parameter_count(model):,} parameters, {size}", markup=False)
    console.print(f"{out}: start from it with --set model.init_from={out}", soft_wrap=True, markup=False)
