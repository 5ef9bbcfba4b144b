"""Mutated files of model folders: a UserError or a right reading, never a traceback, a hang or a full memory.

The quick form has a few hundred inputs, the slow form 10,000 for each reader.
"""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from rlaif_jax.data.chat_template import ChatTemplate
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.models import lora
from rlaif_jax.models.hf_config import from_hf, read_config, to_hf
from rlaif_jax.models.hf_files import Checkpoint
from rlaif_jax.models.hf_weights import check, name_table
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.models.model_config import ModelConfig
from rlaif_jax.models.peft import load_adapter, save_adapter
from tests.data import folders
from tests.fuzz.mutate import json_mutations, mutations, outcomes

TEXT = "hello <|im_end|> </think> 祝您生日快乐"
SMALL = ModelConfig(vocab_size=32, width=16, ffn=16, layers=2, heads=2, kv_heads=1, head_dim=8)
COUNTS = [pytest.param(80, id="quick"), pytest.param(10_000, id="slow", marks=[pytest.mark.slow, pytest.mark.timeout(7200)])]


@pytest.fixture(autouse=True, scope="module")
def _silent():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def cases(path, count, seed=0):
    """Damaged bytes and damaged JSON of a file, half of each."""
    data = path.read_bytes()
    yield from mutations(data, count - count // 2, seed)
    for value in json_mutations(json.loads(data), count // 2, seed):
        yield json.dumps(value).encode()


def written(path, read):
    """A reader of bytes that are first written to `path`."""

    def from_bytes(data):
        path.write_bytes(data)
        return read()

    return from_bytes


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_tokenizer_folders(tmp_path, file, count, capfd):
    folder = folders.shaped(tmp_path, "qwen3")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [315, 317]}), encoding="utf-8")

    def use():
        tokenizer = Tokenizer.load(folder)
        ids = tokenizer.encode_response(TEXT)
        prompt = tokenizer.encode_chat_prompt(TEXT, "be kind")
        controls = [i for i in prompt if i in tokenizer.control_ids]
        harmless = [i for i in tokenizer.encode_chat_prompt("hello", "be kind") if i in tokenizer.control_ids]
        tokenizer.decode(prompt)
        return ids[:-1], controls == harmless, tokenizer

    accepted, refused = outcomes(written(folder / file, use), cases(folder / file, count))
    assert accepted and refused
    unknown = {t._fast.token_to_id(t._backend.unk_token) for _, (_, _, t) in accepted if t._backend.unk_token}
    for case, (ids, alike, tokenizer) in accepted:
        assert not (tokenizer.control_ids - unknown) & set(ids), case
        assert alike or unknown, case
        assert max(ids, default=0) < tokenizer.vocab_size, case


@pytest.mark.parametrize("count", COUNTS)
def test_chat_templates(count):
    turns = [{"role": role, "content": f"{role}: {TEXT}"} for role in ("system", "user", "assistant")]
    templates = [folders.LLAMA_DATED, folders.MISTRAL, folders.QWEN3, folders.PARTS]
    texts = [
        data.decode("utf-8", "replace") for n, template in enumerate(templates)
        for data in mutations(template.encode(), count // len(templates), n)
    ]  # fmt: skip

    def lay_out(template):
        made = ChatTemplate(template, {"bos_token": "<s>", "eos_token": "</s>"}, "x")
        return [(chat, made.parts(chat, generate)) for chat, generate in ((turns[1:2], True), (turns[1:], False))]

    accepted, refused = outcomes(lay_out, texts)
    assert accepted and refused
    for template, chats in accepted:
        for chat, parts in chats:
            shown = {text for text, is_turn in parts if is_turn}
            assert {turn["content"] for turn in chat} <= shown, template


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("scalar", [False, True])
def test_model_configs(tmp_path, count, scalar):
    raw = to_hf(dataclasses.replace(SMALL, qk_norm=True), scalar=scalar, dtype="float32", eos_ids=[1], pad_id=0)
    raw |= {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}}
    raw["rope_scaling"]["original_max_position_embeddings"] = 32
    raw |= {"layer_types": ["full_attention"] * 2, "sliding_window": 4096, "max_window_layers": 2}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw), encoding="utf-8")
    right = from_hf(raw)

    def read():
        found = read_config(tmp_path)
        return found, len(name_table(found.model, found.scalar))

    accepted, refused = outcomes(written(path, read), cases(path, 4 * count))
    assert accepted and refused
    names = {
        "vocab_size": "vocab_size", "hidden_size": "width", "intermediate_size": "ffn", "num_hidden_layers": "layers",
        "num_attention_heads": "heads", "num_key_value_heads": "kv_heads", "head_dim": "head_dim",
    }  # fmt: skip
    for case, (found, _) in accepted:
        value = json.loads(case)
        for theirs, ours in names.items():
            if value.get(theirs) is not None:
                assert value[theirs] == getattr(found.model, ours), case
        if value.get("architectures"):
            assert found.scalar == value["architectures"][0].endswith("SequenceClassification"), case
        assert found.model.qk_norm == right.model.qk_norm or value["model_type"] != raw["model_type"]


@pytest.fixture
def weights(tmp_path):
    """A folder with two shards, and in it a folder with one file."""
    rng, shards = np.random.default_rng(0), ({}, {})
    for number, entry in enumerate(name_table(SMALL, False)):
        shards[number % 2].update({name: rng.normal(size=entry.shape).astype(np.float32) for name in entry.names})
    files = [f"model-{i}-of-2.safetensors" for i in (1, 2)]
    for file, tensors in zip(files, shards, strict=True):
        save_file(tensors, tmp_path / file)
    (tmp_path / "one").mkdir()
    save_file(shards[0] | shards[1], tmp_path / "one" / "model.safetensors")
    index = {"weight_map": {name: file for file, tensors in zip(files, shards, strict=True) for name in tensors}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return tmp_path


def _tensors(folder):
    found = Checkpoint(folder)
    check(found, name_table(SMALL, False), tied=True)
    tensors = {}
    for name in found.names:
        with found.slices(name) as tensor:
            tensors[name] = tensor[:]
    return tensors


@pytest.mark.parametrize("count", COUNTS)
def test_safetensors(weights, count):
    path = weights / "one" / "model.safetensors"
    data, right = path.read_bytes(), _tensors(weights / "one")
    header = 8 + int.from_bytes(data[:8], "little")
    damaged = (head + data[header:] for head in mutations(data[:header], 2 * count, 0))
    lying = (
        len(head := json.dumps(value).encode()).to_bytes(8, "little") + head + data[header:]
        for value in json_mutations(json.loads(data[8:header]), 2 * count, 0)
    )
    accepted, refused = outcomes(written(path, lambda: _tensors(weights / "one")), [*damaged, *lying])
    assert refused
    for case, found in accepted:  # names, shapes and dtypes are right, whatever else the header says
        assert {n: (t.shape, t.dtype) for n, t in found.items()} == {n: (t.shape, t.dtype) for n, t in right.items()}, case[:2000]


@pytest.mark.parametrize("count", COUNTS)
def test_indexes(weights, count):
    path, right = weights / "model.safetensors.index.json", _tensors(weights)
    accepted, refused = outcomes(written(path, lambda: _tensors(weights)), list(cases(path, 3 * count)))
    assert refused
    for case, found in accepted:
        assert found.keys() == right.keys() and all(np.array_equal(found[n], right[n]) for n in right), case


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_adapters(tmp_path, count, file):
    options = LoraConfig({"layers/(q|v)": 4, "layers/down": 2}, alpha=8.0)
    adapter = jax.tree.map(lambda x: x + 0.5, lora.init(SMALL, options, jax.random.key(0)))
    save_adapter(adapter, SMALL, options, tmp_path, base="x")
    path, right = tmp_path / file, load_adapter(tmp_path, SMALL)[0]
    found = list(cases(path, 2 * count)) if file.endswith("json") else list(mutations(path.read_bytes(), count, 0))
    accepted, refused = outcomes(written(path, lambda: load_adapter(tmp_path, SMALL)), found)
    assert refused
    for case, (tree, config, _) in accepted:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)), case[:2000]
        assert 0 < config.alpha <= 1e6 and tree["layers"].keys() == right["layers"].keys(), case[:2000]
