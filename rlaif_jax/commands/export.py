"""`rlaif export`: writes a model of a run as a Hugging Face folder, for transformers and vLLM."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlaif_jax import state_files
from rlaif_jax.commands.model_card import hub_name, model_card
from rlaif_jax.config.stages import stage_of
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.errors import UserError
from rlaif_jax.language import LANGUAGES
from rlaif_jax.models.hf_config import to_hf
from rlaif_jax.models.hf_weights import save_params
from rlaif_jax.models.peft import save_adapter
from rlaif_jax.models.pretrained import source_of
from rlaif_jax.runs.folder import Run, write_json
from rlaif_jax.runs.models import BASE, RunModels

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def shard_bytes(text: str) -> int:
    """Number of bytes of a size such as "5GB", "200MB" or "40KB" (powers of ten)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]B)", text.strip().upper())
    if not found or float(found[1]) == 0:
        raise UserError(f"--max-shard-size is {text!r}; expected a size such as 5GB or 200MB")
    return int(float(found[1]) * _UNITS[found[2]])


def export(x: Run, stage: str, out: str | Path, *, dtype: str = "", max_shard_bytes: int = 5 * 10**9) -> list[Path]:
    """Writes config, weights, tokenizer, generation config and model card. Returns the weight files.

    `dtype`: empty for the dtype of the model that the run started from, else of the run's parameters. The folder is written
    completely or not at all. UserError if it exists and is not empty.
    """
    out = _new_folder(out)
    models, scalar = RunModels(x), _is_scalar(x, stage)
    source = source_of(x.cfg.model.start) if x.cfg.model.start else None
    dtype = dtype or (source or {}).get("dtype") or (source or {}).get("torch_dtype") or models.config.param_dtype
    params = models.scalar(stage) if scalar else models.policy(stage)
    with _completed(out) as part:
        files = save_params(params, models.config, part, x.place, dtype=dtype, scalar=scalar, max_shard_bytes=max_shard_bytes)
        _write_rest(x, stage, part, models, dtype, source)
    return [out / file.name for file in files]


def export_adapter(x: Run, stage: str, out: str | Path) -> None:
    """Writes what a stage trained as one LoRA adapter over `model.init_from`, in PEFT format, with tokenizer and model card.

    A stage that started from another stage's weights gets the sum of both adapters, with the sum of their ranks. The folder is
    written completely or not at all. UserError for a run that did not start from a model folder: its base exists nowhere else.
    """
    out, models, base = _new_folder(out), RunModels(x), x.cfg.model.start
    if not base:
        raise UserError("model.init_from is empty: the adapter has no base outside of this run; export without --adapter")
    scalar = _is_scalar(x, stage)
    adapter, lora, score = models.adapter(stage)
    size = sum(leaf.size for leaf in jax.tree.leaves(adapter))
    facts = f"{size:,} parameters over {hub_name(base) or Path(base).name}"
    with _completed(out) as part:
        save_adapter(adapter, models.config, lora, part, base=hub_name(base) or str(Path(base).absolute()), score=score)
        models.tokenizer.save(part)
        _write_card(x, stage, part, facts, scalar=scalar, adapter=True)


@contextlib.contextmanager
def _completed(out: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `out` at the end if nothing failed."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        yield part
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _new_folder(out: str | Path) -> Path:
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; choose another --out")
    return out


def _is_scalar(x: Run, stage: str) -> bool:
    """True for a stage that trains a scalar model, False for a policy. UserError if it trains neither, or is not in the run."""
    if stage == BASE:
        return False
    leaves = stage_of(x.cfg, stage).leaves
    if leaves not in ("policy", "scalar"):
        raise UserError(f"the stage {stage!r} trains no model to export")
    return leaves == "scalar"


def _write_rest(x: Run, stage: str, folder: Path, models: RunModels, dtype: str, source: Any) -> None:
    tokenizer, scalar = models.tokenizer, _is_scalar(x, stage)
    config = to_hf(
        models.config, scalar=scalar, dtype=dtype, eos_ids=tokenizer.eos_ids, pad_id=tokenizer.pad_id, source=source
    )  # fmt: skip
    write_json(folder / "config.json", config)
    if not scalar:
        write_json(folder / "generation_config.json", _generation_config(x, tokenizer, config))
    tokenizer.save(folder)
    shape = f"{config['architectures'][0]}, {config['num_hidden_layers']} layers of width {config['hidden_size']}, {dtype} weights"
    _write_card(x, stage, folder, shape, scalar=scalar)


def _write_card(x: Run, stage: str, folder: Path, facts: str, *, scalar: bool, adapter: bool = False) -> None:
    """The model card; it names the class that loads the tokenizer as the run used it."""
    kind = "AutoTokenizer"
    if not _reads_alike(folder, RunModels(x).tokenizer):
        kind = "PreTrainedTokenizerFast"
        x.console.print(
            "note: AutoTokenizer tokenizes differently here, since it uses parts of the model family's own tokenizer; "
            f"load the tokenizer with {kind}, as shown in the exported README.md", style="yellow", markup=False,
        )  # fmt: skip
    card = model_card(x, stage, facts, scalar=scalar, adapter=adapter, tokenizer=kind)
    state_files.write_text(folder / "README.md", card)


def _generation_config(x: Run, tokenizer: Tokenizer, config: dict[str, Any]) -> dict[str, Any]:
    """Sampling as in the run's evaluation. top_k 0 is written explicitly, since the default of transformers is 50."""
    sampling = x.cfg.evaluation.sampling
    tokens = {"bos_token_id": config["bos_token_id"], "eos_token_id": list(tokenizer.eos_ids), "pad_token_id": tokenizer.pad_id}
    if sampling.temperature == 0:
        return tokens | {"do_sample": False}
    found = {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    return tokens | found | ({"min_p": sampling.min_p} if sampling.min_p else {})


_PROBES = (*(language.probe for language in LANGUAGES.values()), "😀👨‍👩‍👧 ①２½ <|im_end|>")


def _reads_alike(folder: Path, tokenizer: Tokenizer) -> bool:
    """Whether AutoTokenizer tokenizes like the run's tokenizer, on some tricky texts and on random tokens."""
    from transformers import AutoTokenizer

    ids = set(np.random.default_rng(0).integers(0, tokenizer.vocab_size, 4000).tolist()) - tokenizer.control_ids
    probes = (*_PROBES, "".join(tokenizer.decode([i]).replace("\ufffd", "") for i in sorted(ids)))
    other = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    return all(
        other.encode(t, add_special_tokens=False, split_special_tokens=True) == tokenizer.encode_response(t)[:-1] for t in probes
    )
