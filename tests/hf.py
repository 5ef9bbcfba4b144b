"""Random checkpoints of every family, made and saved by transformers' torch models."""

import contextlib
import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rlaif_jax.data import corpus
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.models import ops
from tests import tiny

SIZES = {
    "vocab_size": 160, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 1000.0}
FAMILIES = {
    "qwen2": {"tie_word_embeddings": True, "rope_parameters": PLAIN},
    "qwen2-untied": {"tie_word_embeddings": False, "rope_parameters": PLAIN},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True, "rope_parameters": PLAIN},
    "llama": {"tie_word_embeddings": False, "rope_parameters": LLAMA3},
    "llama-linear": {"tie_word_embeddings": True, "rope_parameters": PLAIN | {"rope_type": "linear", "factor": 4.0}},
    "mistral": {"head_dim": 8, "sliding_window": None, "rope_parameters": PLAIN},
}


def random_model(family: str, scalar: bool = False, **changes):
    """A torch model in float32 with weights of a size that makes every part of it matter."""
    torch = pytest.importorskip("torch")
    import transformers

    torch.set_num_threads(1)  # models this small only lose by more
    kind = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama", "mistral": "Mistral"}[family.split("-")[0]]
    config = getattr(transformers, f"{kind}Config")(**SIZES | FAMILIES[family] | changes, attn_implementation="eager")
    if scalar:
        config.num_labels = 1
    torch.manual_seed(0)
    model = getattr(transformers, kind + ("ForSequenceClassification" if scalar else "ForCausalLM"))(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def save(model, folder: Path, **options) -> Path:
    """`save_pretrained` without its progress bar."""
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder, **options)
    return folder


def instruct_folder(folder: Path) -> Path:
    """Qwen2 shapes with tied embeddings in bfloat16, and a tokenizer of their size with a chat template."""
    texts = [t for r in corpus.generate(0, tiny.config().data.corpus).sft for t in (r["prompt"], r["response"])]
    # Words that span a blank: beside a Qwen2 model, AutoTokenizer would split them.
    tokenizer = Tokenizer.train([*texts, *["🎂 Happy Birthday to you"] * 50], 640, folder)
    model = random_model("qwen2", vocab_size=640, eos_token_id=tokenizer.eos_ids[0], pad_token_id=tokenizer.pad_id)
    return save(model.bfloat16(), folder)


def rows(left: bool, seed: int = 0, count: int = 3, length: int = 17, vocab: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """tokens and segment_ids (B, T) of texts of different lengths, padded with 0 on one side."""
    rng = np.random.default_rng(seed)
    tokens, segments = np.zeros((count, length), np.int32), np.zeros((count, length), np.int32)
    for i in range(count):
        size = length - 4 * i
        part = slice(length - size, length) if left else slice(0, size)
        tokens[i, part], segments[i, part] = rng.integers(2, vocab, size), 1
    return tokens, segments


def torch_inputs(tokens: np.ndarray, segments: np.ndarray) -> dict:
    """The same rows for a torch model, with positions that count real tokens."""
    import torch

    positions = np.maximum(segments.cumsum(1) - 1, 0)
    return {
        "input_ids": torch.tensor(tokens).long(), "attention_mask": torch.tensor(segments).long(),
        "position_ids": torch.tensor(positions).long(),
    }  # fmt: skip


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder by name, dtypes as stored."""
    from safetensors import safe_open

    out = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "numpy") as tensors:
            out |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    return out


def assert_same_tensors(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """Names, dtypes and bytes are equal."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype and value.shape == b[name].shape, name
        assert value.tobytes() == b[name].tobytes(), name


def as_jax(segments: np.ndarray):
    """Positions of rows as ours."""
    return ops.positions_of(jnp.array(segments))
