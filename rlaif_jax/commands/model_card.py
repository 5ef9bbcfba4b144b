"""The README.md of an exported model or adapter: what it is, how to load it, how it compares, and the run's settings."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Any

import yaml

from rlaif_jax.commands.config_info import differences
from rlaif_jax.config import RunConfig
from rlaif_jax.config.stages import REPORT, stage_of, stages_of
from rlaif_jax.config.values import to_dict
from rlaif_jax.evaluation.text import escape_markdown
from rlaif_jax.models.pretrained import source_of
from rlaif_jax.runs.folder import Run
from rlaif_jax.runs.models import BASE

_CARD = """---
{header}---
# {name}: {stage}

{what}, trained with rlaif_jax (reinforcement learning from AI feedback in JAX): {facts}.

## Use

```python
{snippet}
```
{evaluation}{stages}
## Settings of the run

The fields that differ from the defaults of rlaif_jax:

```yaml
{settings}```
"""
_TOKENIZER = """from transformers import {model}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
"""
_GENERATE = """chat = [{"role": "user", "content": "..."}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=128)[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
_SCORE = """chat = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]
print(model(**tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)).logits[0, 0])"""


def model_card(
    x: Run, stage: str, facts: str, *, scalar: bool, adapter: bool = False, tokenizer: str = "AutoTokenizer"
) -> str:  # fmt: skip
    """The card of what `stage` left. `facts`: shape and dtype in words; `tokenizer`: the class of transformers that loads it."""
    what = "before any training" if stage == BASE else stage_of(x.cfg, stage).title
    what = what[0].upper() + what[1:] if scalar else f"The policy {what}"
    return _CARD.format(
        header=_header(x, scalar, adapter), name=escape_markdown(x.cfg.name), stage=stage,
        what=f"{what}, as a LoRA adapter" if adapter else what, facts=facts,
        snippet=_snippet(scalar, adapter).replace("AutoTokenizer", tokenizer), evaluation=_evaluation(x), stages=_stages(x),
        settings=_settings(x.cfg),
    )  # fmt: skip


def hub_name(folder: str) -> str:
    """The Hub's name ("OWNER/NAME") of a model folder if its config.json has one, else ""."""
    name = source_of(folder).get("_name_or_path") if folder else ""
    return name if isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else ""


def _header(x: Run, scalar: bool, adapter: bool) -> str:
    """The YAML that the Hub reads."""
    base = hub_name(x.cfg.model.start)
    fields: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-classification" if scalar else "text-generation",
        **({"base_model": base} if base else {}), **({"language": [x.cfg.language]} if x.cfg.language != "auto" else {}),
        "tags": ["rlaif", "rlaif_jax"],
    }  # fmt: skip
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _snippet(scalar: bool, adapter: bool) -> str:
    kind = "AutoModelForSequenceClassification" if scalar else "AutoModelForCausalLM"
    ask, options = (_SCORE, ", num_labels=1") if scalar else (_GENERATE, "")
    if not adapter:
        return _TOKENIZER.format(model=kind) + f'model = {kind}.from_pretrained("THIS_FOLDER", dtype="auto")\n{ask}'
    load = f'model = {kind}.from_pretrained("BASE_MODEL", dtype="auto"{options})\n'
    return (
        "from peft import PeftModel\n" + _TOKENIZER.format(model=kind) + load
        + f'model = PeftModel.from_pretrained(model, "THIS_FOLDER")\n{ask}'
    )  # fmt: skip


def _settings(cfg: RunConfig) -> str:
    """The changed fields as YAML; an absolute path only by its last part, since a card is published."""
    changed = {name: _without_folders(value) for name, _, value in differences(to_dict(RunConfig()), to_dict(cfg))}
    return yaml.safe_dump(changed, sort_keys=False, allow_unicode=True).replace("`", r"\x60")


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_folders(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_folders(v) for v in value]
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value


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
