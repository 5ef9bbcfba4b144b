"""Checkpoints of transformers in and out: the same numbers, the same tensors, and nothing missing in silence."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from rlaif_jax.commands.import_model import import_model
from rlaif_jax.errors import UserError
from rlaif_jax.models import heads, ops, transformer
from rlaif_jax.models.hf_config import read_config, to_hf
from rlaif_jax.models.hf_weights import load_params, save_params
from rlaif_jax.models.pretrained import load_policy
from rlaif_jax.sampling.filters import SamplingConfig, traced
from rlaif_jax.sampling.sampler import make_sampler
from tests import hf

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module", params=hf.FAMILIES)
def causal(request, tmp_path_factory):
    model = hf.random_model(request.param)
    return model, hf.save(model, tmp_path_factory.mktemp(request.param))


def _load(folder, place):
    found = read_config(folder)
    return found.model, load_params(folder, found.model, place, found.scalar)


def _logits(cfg, params, tokens, segments):
    hidden = transformer.forward(params, cfg, tokens, segments, hf.as_jax(segments))
    return np.asarray(ops.logits(hidden, ops.output_matrix(params, cfg)))


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_logits_are_those_of_transformers(causal, left, one_device):
    model, folder = causal
    cfg, params = _load(folder, one_device)
    tokens, segments = hf.rows(left)
    ours = _logits(cfg, params, tokens, segments)
    with torch.no_grad():
        theirs = model(**hf.torch_inputs(tokens, segments)).logits.numpy()
    assert np.abs(theirs[segments > 0]).max() > 1
    np.testing.assert_allclose(ours[segments > 0], theirs[segments > 0], atol=1e-4)


def test_greedy_continuations_are_those_of_transformers(causal, one_device):
    model, folder = causal
    cfg, params = _load(folder, one_device)
    tokens, segments = hf.rows(left=True)
    sampler = make_sampler(cfg, transformer.logical_axes(cfg), one_device, group=1, max_tokens=64, pad_id=0)
    decoded = sampler(params, tokens, segments, 0, 0, traced(SamplingConfig(0.0, max_tokens=64), (1,)))
    inputs = hf.torch_inputs(tokens, segments)
    with torch.no_grad():
        theirs = model.generate(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=64, do_sample=False,
            eos_token_id=1, pad_token_id=0,
        ).numpy()[:, tokens.shape[1] :]  # fmt: skip
    ours = np.asarray(decoded.tokens)
    assert np.asarray(decoded.mask).sum() > 64, "the continuations are long"
    np.testing.assert_array_equal(ours[:, : theirs.shape[1]], theirs)


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
def test_scores_are_those_of_a_sequence_classifier(family, left, tmp_path, one_device):
    model = hf.random_model(family, scalar=True)
    folder = hf.save(model, tmp_path / "rm")
    cfg, params = _load(folder, one_device)
    tokens, segments = hf.rows(left)
    ours = heads.scores(params, cfg, tokens, segments, hf.as_jax(segments))
    with torch.no_grad():
        theirs = model(**hf.torch_inputs(tokens, segments)).logits[:, 0].numpy()
    assert np.ptp(theirs) > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def _export(folder: Path, out: Path, place, dtype: str, **options) -> Path:
    found = read_config(folder)
    params = load_params(folder, found.model, place, found.scalar)
    out.mkdir()
    save_params(params, found.model, out, place, dtype=dtype, scalar=found.scalar, **options)
    config = to_hf(found.model, scalar=found.scalar, dtype=dtype, eos_ids=(1,), pad_id=0, source=found.raw)
    (out / "config.json").write_text(json.dumps(config))
    return out


_ROUND_TRIPS = [
    *((family, "float32") for family in hf.FAMILIES), ("qwen2", "bfloat16"), ("llama", "bfloat16"), ("qwen3", "float16"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "dtype"), _ROUND_TRIPS)
def test_a_round_trip_keeps_every_byte(family, dtype, tmp_path, one_device):
    model = hf.random_model(family).to(getattr(torch, dtype))
    folder = hf.save(model, tmp_path / "theirs", max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    out = _export(folder, tmp_path / "ours", one_device, dtype, max_shard_bytes=50_000)
    sizes = [p.stat().st_size for p in out.glob("*.safetensors")]
    assert len(sizes) > 1 and max(sizes) < 54_000
    hf.assert_same_tensors(hf.tensors_of(folder), hf.tensors_of(out))
    options = {"dtype": "auto", "attn_implementation": "eager"}
    again, info = type(model).from_pretrained(out, output_loading_info=True, **options)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    state = model.state_dict()
    assert all(torch.equal(v, state[k]) and v.dtype == state[k].dtype for k, v in again.state_dict().items())
    assert again.config.rope_parameters == model.config.rope_parameters
    tokens, segments = hf.rows(left=False)
    with torch.no_grad():
        first = type(model).from_pretrained(folder, **options)
        a, b = (m(**hf.torch_inputs(tokens, segments)).logits for m in (first, again))
    assert torch.equal(a, b)


def test_masters_in_float32_give_the_bfloat16_back(tmp_path, one_device):
    folder = hf.save(hf.random_model("qwen3").bfloat16(), tmp_path / "theirs")
    model = read_config(folder).model
    assert model.param_dtype == "bfloat16"
    params = load_params(folder, dataclasses.replace(model, param_dtype="float32"), one_device)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    (tmp_path / "ours").mkdir()
    save_params(params, model, tmp_path / "ours", one_device, dtype="bfloat16")
    hf.assert_same_tensors(hf.tensors_of(folder), hf.tensors_of(tmp_path / "ours"))


def test_what_float16_cannot_hold_is_not_written(tmp_path, one_device):
    folder = hf.save(hf.random_model("llama"), tmp_path / "theirs")
    found = read_config(folder)
    params = load_params(folder, found.model, one_device)
    params["final_norm"] = params["final_norm"].at[3].set(1e5)
    with pytest.raises(UserError, match=r"model\.norm\.weight has values too large for float16"):
        save_params(params, found.model, tmp_path, one_device, dtype="float16")


def test_a_reward_model_goes_out_without_an_output_matrix(tmp_path, one_device):
    folder = hf.save(hf.random_model("llama", scalar=True), tmp_path / "theirs")
    hf.assert_same_tensors(hf.tensors_of(folder), hf.tensors_of(_export(folder, tmp_path / "ours", one_device, "float32")))
    import transformers

    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    assert again.config.num_labels == 1


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_eight_devices_read_their_own_parts(family, eight_devices, one_device, tmp_path):
    folder = hf.save(hf.random_model(family), tmp_path / "theirs")
    cfg, params = _load(folder, eight_devices)
    _, whole = _load(folder, one_device)
    abstract = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))
    wanted = eight_devices.tree(transformer.logical_axes(cfg), abstract)
    assert jax.tree.map(lambda x: x.sharding, params) == wanted
    assert params["layers"]["q"].addressable_shards[0].data.size == params["layers"]["q"].size // 4
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), params, whole)
    out = tmp_path / "out"
    out.mkdir()
    save_params(params, cfg, out, eight_devices, dtype="float32")
    hf.assert_same_tensors(hf.tensors_of(folder), hf.tensors_of(out))


def _rewrite(folder, out, change):
    """A copy of a single-file folder with its tensors changed."""
    shutil.copytree(folder, out)
    tensors = hf.tensors_of(folder)
    change(tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_whatever_does_not_fit_is_named(tmp_path, one_device):
    folder = hf.save(hf.random_model("llama"), tmp_path / "good")
    key = "model.layers.1.self_attn.k_proj.weight"
    cases = {
        "missing": (lambda t: t.pop(key), rf"missing: {key}"),
        "no output matrix": (lambda t: t.pop("lm_head.weight"), r"missing: lm_head\.weight"),
        "extra": (lambda t: t.update({"model.layers.0.extra.weight": t[key]}), r"not part of the model: model\.layers\.0\.extra"),
        "bias": (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": t[key][0]}), r"not part.*q_proj\.bias"),
        "shape": (lambda t: t.update({key: t[key].T.copy()}), rf"{key} has shape \(48, 24\), expected \(24, 48\)"),
        "dtype": (lambda t: t.update({key: t[key].astype(np.int8)}), rf"{key} has dtype I8"),
    }
    for name, (change, message) in cases.items():
        with pytest.raises(UserError, match=message):
            _load(_rewrite(folder, tmp_path / name, change), one_device)
    derived = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(6, np.float32)}
    _load(_rewrite(folder, tmp_path / "derived", lambda t: t.update(derived)), one_device)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_named(tmp_path, one_device, value):
    folder, key = hf.save(hf.random_model("llama"), tmp_path / "good"), "model.layers.1.self_attn.k_proj.weight"

    def spoil(tensors):
        for name in (key, "model.norm.weight"):
            tensors[name] = tensors[name].copy()
            tensors[name].flat[3] = value

    wrong = _rewrite(folder, tmp_path / "wrong", spoil)
    for int8 in (False, True):
        with pytest.raises(UserError, match=rf"contain NaN or infinity: model\.norm\.weight, {key}$"):
            load_policy(wrong, read_config(wrong).model, one_device, int8)


def test_an_imported_copy_with_a_spoiled_weight_is_named(tmp_path, one_device):
    folder = hf.instruct_folder(tmp_path / "good")
    import_model(folder, tmp_path / "imported", console=Console(quiet=True))
    cfg = read_config(folder).model
    params = load_policy(tmp_path / "imported", cfg, one_device)
    params["layers"]["q"] = params["layers"]["q"].at[1, 2, 3].set(jnp.nan)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((tmp_path / "imported" / "params").absolute(), params, force=True)
    with pytest.raises(UserError, match=r"NaN or infinity: model\.layers\.1\.self_attn\.q_proj\.weight$"):
        load_policy(tmp_path / "imported", cfg, one_device)


def test_a_stored_copy_of_tied_embeddings_must_be_one(tmp_path, one_device):
    folder = hf.save(hf.random_model("qwen2"), tmp_path / "good")
    embed = hf.tensors_of(folder)["model.embed_tokens.weight"]
    cfg, params = _load(_rewrite(folder, tmp_path / "copy", lambda t: t.update({"lm_head.weight": embed})), one_device)
    assert cfg.tied_embeddings and "lm_head" not in params
    with pytest.raises(UserError, match=r"lm_head\.weight differs"):
        _load(_rewrite(folder, tmp_path / "other", lambda t: t.update({"lm_head.weight": embed + 1})), one_device)


def test_broken_folders_are_refused(tmp_path, one_device):
    folder = hf.save(hf.random_model("qwen2"), tmp_path / "good", max_shard_size="40KB")
    with pytest.raises(UserError, match=r"no config\.json"):
        read_config(tmp_path)
    shards = sorted(folder.glob("*.safetensors"))
    cut = shards[0].read_bytes()
    shards[0].write_bytes(cut[:1000])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        _load(folder, one_device)
    shards[0].unlink()
    with pytest.raises(UserError, match=rf"not in the folder: '{shards[0].name}'$"):
        _load(folder, one_device)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../good/config.json"}}))
    with pytest.raises(UserError, match="not in the folder"):
        _load(folder, one_device)
    for raw in (
        {"weight_map": {"a": ["b"]}},
        {"weight_map": {"a": "x" * 5000}},
        {"weight_map": {"a": "\x00"}},
        {"weight_map": []},
        {},
    ):
        index.write_text(json.dumps(raw))
        with pytest.raises(UserError, match="not in the folder|expected an object with weight_map"):
            _load(folder, one_device)
    index.unlink()
    with pytest.raises(UserError, match="only safetensors"):
        _load(folder, one_device)


def test_an_index_must_be_true_of_its_files(tmp_path, one_device):
    folder = hf.save(hf.random_model("llama"), tmp_path / "good", max_shard_size="40KB")
    index = folder / "model.safetensors.index.json"
    whole = json.loads(index.read_text())["weight_map"]
    name, files = "model.norm.weight", sorted(set(whole.values()))
    elsewhere = next(f for f in files if f != whole[name])
    for weight_map, message in (
        (whole | {"model.layers.9.ghost": files[0]}, rf"file that the index names: model\.layers\.9\.ghost \({files[0]}\)$"),
        (whole | {name: elsewhere}, rf"file that the index names: model\.norm\.weight \({elsewhere}\)$"),
        ({n: f for n, f in whole.items() if n != name}, rf"but not in the index: model\.norm\.weight \({whole[name]}\)$"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match=message):
            _load(folder, one_device)
    index.write_text(json.dumps({"weight_map": whole}))
    _load(folder, one_device)


_MEASURE = """
import resource, sys, threading, time
import jax, psutil
from rlaif_jax.models.hf_config import read_config
from rlaif_jax.models.hf_weights import load_params
from rlaif_jax.sharding import MeshConfig, Placement, make_mesh

place = Placement(make_mesh(MeshConfig(data=1, fsdp=2)))
load_params(sys.argv[2], read_config(sys.argv[2]).model, place)  # compiles, warms the allocator
process, peak, stop = psutil.Process(), [0], threading.Event()

def watch():
    while not stop.wait(0.0005):
        peak[0] = max(peak[0], process.memory_info().rss)

before = process.memory_info().rss
thread = threading.Thread(target=watch)
thread.start()
params = load_params(sys.argv[1], read_config(sys.argv[1]).model, place)
stop.set()
thread.join()
arrays = sum(x.nbytes for x in jax.tree.leaves(params))
print(peak[0] - before - arrays, arrays)
"""


def test_the_host_holds_one_tensor_at_a_time(tmp_path):
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 4000}
    folder = hf.save(hf.random_model("qwen3", **sizes), tmp_path / "big", max_shard_size="30MB")
    small = hf.save(hf.random_model("qwen3", **sizes | {"num_hidden_layers": 2}), tmp_path / "small")
    shard = max(p.stat().st_size for p in folder.glob("*.safetensors"))
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    out = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(folder), str(small)], env=env, capture_output=True, text=True, check=True
    )  # fmt: skip
    beyond, arrays = map(int, out.stdout.split())
    assert arrays > 3 * shard
    assert beyond <= 1.3 * shard, f"{beyond / 1e6:.0f} MB beyond {arrays / 1e6:.0f} MB of arrays, shard {shard / 1e6:.0f} MB"
