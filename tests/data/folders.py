"""Small tokenizer folders laid out like those of known model families. The templates are our own."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA_DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% set messages = messages[1:] %}{% endif %}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]{% elif m.role == 'assistant' %}"
    " {{ m.content }}{{ eos_token }}{% else %}{{ raise_exception('no system turn here') }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Like Qwen3's: only what follows the thinking of an answer is written, behind an empty thinking block.
QWEN3 = (
    "{% for m in messages %}{% set text = m.content %}{% if m.role == 'assistant' and '</think>' in text %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ text }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA_NAMES = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
_LLAMA_TOKENS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
    "<|python_tag|>",
)  # fmt: skip
_QWEN_NAMES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
_QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_PLAIN = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|fim_prefix|>")
# name -> template, special tokens, other added tokens, special tokens by name
SHAPES = {
    "llama": (LLAMA, _LLAMA_TOKENS, (), _LLAMA_NAMES),
    "llama-eos-text": (LLAMA, _LLAMA_TOKENS, (), _LLAMA_NAMES | {"eos_token": "<|end_of_text|>"}),
    "llama-dated": (LLAMA_DATED, _LLAMA_TOKENS, (), _LLAMA_NAMES),
    "mistral": (MISTRAL, ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), (), {"bos_token": "<s>", "eos_token": "</s>"}),
    "qwen": (CHATML, _QWEN_TOKENS, _QWEN_PLAIN, _QWEN_NAMES),
    "qwen3": (QWEN3, _QWEN_TOKENS, _QWEN_PLAIN, _QWEN_NAMES),
    "parts": (PARTS, _QWEN_TOKENS, (), _QWEN_NAMES),
}
_TEXTS = ["hello world, a happy birthday to you", "祝您生日快乐，万事如意！"] * 20


def shaped(folder: Path, name: str) -> Path:
    """A folder of `SHAPES`."""
    template, special, plain, names = SHAPES[name]
    return tokenizer_folder(folder, template, special, plain, **names)


def tokenizer_folder(
    folder: Path, template: str | None, special: tuple = _QWEN_TOKENS, plain: tuple = (), *, normalizer=None, model=None, **names
) -> Path:  # fmt: skip
    """A byte-level BPE (or `model`) with these added tokens, as transformers 4 lays a folder out."""
    backend = model or Tokenizer(models.BPE())
    if model is None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=360, initial_alphabet=alphabet, show_progress=False)
        backend.train_from_iterator(_TEXTS, trainer)
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    backend.add_tokens([AddedToken(t, special=False, normalized=normalizer is not None) for t in plain])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    flags = {"lstrip": False, "rstrip": False, "single_word": False}
    listed = {}
    for t in (*special, *plain):
        kind = {"content": t, "special": t in special, "normalized": t in plain and normalizer is not None}
        listed[str(backend.token_to_id(t))] = kind | flags
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": listed, **names}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    return folder
