"""`rlaif export`: writes a model of a run as a Hugging Face folder, for transformers and vLLM."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from rlaif_jax.config.stages import FEEDBACK, REPORT, SFT, stage_of, stages_of
from rlaif_jax.config.values import to_dict
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.errors import UserError
from rlaif_jax.evaluation.text import escape_markdown
from rlaif_jax.language import LANGUAGES
from rlaif_jax.models.hf_config import to_hf
from rlaif_jax.models.hf_weights import save_params
from rlaif_jax.models.peft import save_adapter
from rlaif_jax.models.pretrained import source_of
from rlaif_jax.runs.folder import Run, write_json
from rlaif_jax.runs.models import BASE, RunModels, start_name

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
    source = source_of(x.cfg.model.init_from) if x.cfg.model.init_from else None
    dtype = dtype or (source or {}).get("dtype") or (source or {}).get("torch_dtype") or models.config.param_dtype
    params = models.scalar(stage) if scalar else models.policy(stage)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        files = save_params(params, models.config, part, x.place, dtype=dtype, scalar=scalar, max_shard_bytes=max_shard_bytes)
        _write_rest(x, stage, part, models, dtype, source)
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return [out / file.name for file in files]


def export_adapter(x: Run, stage: str, out: str | Path) -> None:
    """Writes the LoRA adapter that a stage trained on `model.init_from`, in PEFT format.

    UserError for a stage that started from another stage's weights: outside of the run the adapter would have no base.
    """
    models, scalar = RunModels(x), _is_scalar(x, stage)
    started = start_name(stage_of(x.cfg, stage).section(x.cfg).init) if scalar else SFT.name
    trained = models.adapter(stage)
    over_this_run = stage != SFT.name and (started == FEEDBACK.name or (started == SFT.name and x.cfg.sft is not None))
    if not x.cfg.model.init_from or over_this_run:
        raise UserError(f"the base of {stage}'s adapter is another stage of this run; export the merged weights, without --adapter")
    out = _new_folder(out)
    adapter, score = (trained["model"], trained["head"]["score"]) if scalar else (trained, None)
    save_adapter(adapter, models.config, x.cfg.lora, out, base=x.cfg.model.init_from, score=score)


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
    if not _reads_alike(folder, tokenizer):
        x.console.print(
            f"note: AutoTokenizer tokenizes differently here, since it uses parts of the {config['model_type']} tokenizer; "
            "load the tokenizer with PreTrainedTokenizerFast, as shown in the exported README.md",
            style="yellow", markup=False,
        )  # fmt: skip
        config = config | {"tokenizer": "PreTrainedTokenizerFast"}
    (folder / "README.md").write_text(model_card(x, stage, config), encoding="utf-8")


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

    ids = np.random.default_rng(0).integers(0, tokenizer.vocab_size, 4000)
    probes = (*_PROBES, "".join(tokenizer.decode([i]).replace("\ufffd", "") for i in ids))
    other = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    return all(
        other.encode(t, add_special_tokens=False, split_special_tokens=True) == tokenizer.encode_response(t)[:-1] for t in probes
    )


_CARD = """---
library_name: transformers
pipeline_tag: {pipeline}
tags:
- rlaif
- rlaif_jax
---
# {name}: {stage}

{what}, trained with rlaif_jax (reinforcement learning from AI feedback in JAX): {architecture}, {layers} layers of width
{width}, {dtype} weights.

## Use

```python
{snippet}
```
{evaluation}{stages}
## Configuration of the run

```json
{config}
```
"""
_GENERATE = """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", dtype="auto")
chat = [{"role": "user", "content": "..."}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=128)[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
_SCORE = """from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
model = AutoModelForSequenceClassification.from_pretrained("THIS_FOLDER", dtype="auto")
chat = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]
print(model(**tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)).logits[0, 0])"""


def model_card(x: Run, stage: str, config: dict[str, Any]) -> str:
    """README.md of an exported model: what it is, how to use it, the run's comparison if there is one, and its config."""
    scalar, tokenizer = _is_scalar(x, stage), config.get("tokenizer", "AutoTokenizer")
    what = "before any training" if stage == BASE else stage_of(x.cfg, stage).title
    return _CARD.format(
        pipeline="text-classification" if scalar else "text-generation", name=escape_markdown(x.cfg.name), stage=stage,
        what=what[0].upper() + what[1:] if scalar else f"The policy {what}", architecture=config["architectures"][0],
        layers=config["num_hidden_layers"], width=config["hidden_size"], dtype=config["torch_dtype"],
        snippet=(_SCORE if scalar else _GENERATE).replace("AutoTokenizer", tokenizer), evaluation=_evaluation(x), stages=_stages(x),
        config=json.dumps(to_dict(x.cfg), ensure_ascii=False, indent=1, sort_keys=True).replace("`", r"\u0060"),
    )  # fmt: skip


def _evaluation(x: Run) -> str:
    """The comparison from the run's report, which is Markdown with escaped texts."""
    report = x.folder(REPORT.name) / "report.md"
    if not report.exists():
        return ""
    before, _, after = report.read_text(encoding="utf-8").partition("\n## Comparison\n")
    return f"\n## Evaluation\n\n{before.partition(chr(10))[2].strip()}\n\n{after.partition(chr(10) + '## ')[0].strip()}\n"


def _stages(x: Run) -> str:
    rows = []
    for name, stage in stages_of(x.cfg).items():
        if stage.leaves in ("policy", "scalar") and x.is_done(name):
            facts = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in x.facts(name).items()}
            rows.append(f"| {name} | {escape_markdown(', '.join(f'{k} {v}' for k, v in facts.items()))} |")
    return "\n## Training\n\n| stage | facts |\n|---|---|\n" + "\n".join(rows) + "\n" if rows else ""
