"""LoRA on the parameter tree: attached equals merged, only the adapter learns, and PEFT reads and writes the same."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlaif_jax.errors import UserError
from rlaif_jax.models import heads, lora, ops, transformer
from rlaif_jax.models.hf_config import read_config
from rlaif_jax.models.hf_weights import load_params
from rlaif_jax.models.lora import LoraConfig
from rlaif_jax.models.peft import load_adapter, save_adapter
from rlaif_jax.sampling.filters import SamplingConfig, traced
from rlaif_jax.sampling.sampler import make_sampler
from tests import hf

LORA = LoraConfig({"layers/(q|v)": 4, "layers/(k|gate)": 2, "layers/up": 0, "layers/(o|up|down)": 3}, alpha=6.0)


def _full(tree, seed=5):
    """The same tree with numbers in it (a fresh adapter changes nothing)."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(structure, [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def _hidden(params, cfg, tokens, segments):
    return transformer.forward(params, cfg, tokens, segments, ops.positions_of(jnp.array(segments)))


def test_targets_are_an_ordered_table(small_model):
    assert lora.ranks(small_model, LORA) == {"q": 4, "k": 2, "v": 4, "o": 3, "gate": 2, "down": 3}
    axes, adapter = lora.logical_axes(small_model, LORA), lora.init(small_model, LORA, jax.random.key(0))
    assert axes["layers"]["down"] == {"a": ("layers", "mlp", None), "b": ("layers", None, "embed")}
    assert adapter["layers"]["down"]["a"].shape == (2, 64, 3) and adapter["layers"]["k"]["b"].shape == (2, 2, 16)
    for targets, message in (
        ({"layers/embed": 4}, "'layers/embed' matches no matrix; the matrices are layers/q"),
        ({"layers/q": 4, "layers/gaet": 4}, "'layers/gaet' matches no matrix; the matrices are layers/q"),
        ({"layers/q": 0}, "gives no matrix a rank"),
        ({}, "gives no matrix a rank"),
        ({"layers/k": 17}, r"rank 17 is too large for layers/k of shape \(32, 16\)"),
    ):
        with pytest.raises(UserError, match=message):
            lora.init(small_model, LoraConfig(targets), jax.random.key(0))
    for wrong, message in (({"q(": 4}, "not a regular expression"), ({"q": -1}, "q is -1; expected")):
        with pytest.raises(UserError, match=message):
            LoraConfig(wrong)


def test_joined_adapters_add_both_updates(small_model, tmp_path):
    base = transformer.init(small_model, jax.random.key(0))
    fresh = lora.init(small_model, LORA, jax.random.key(1))
    first, second = _full(fresh, 5), _full(fresh, 6)
    expected = lora.merge(lora.merge(base, first, LORA), second, LORA)
    both, twice = lora.joined([first, second]), dataclasses.replace(LORA, alpha=2 * LORA.alpha)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), lora.merge(base, both, twice), expected)
    save_adapter(both, small_model, twice, tmp_path, base="base")
    found, read, _ = load_adapter(tmp_path, small_model)
    assert lora.ranks(small_model, read) == {name: 2 * rank for name, rank in lora.ranks(small_model, LORA).items()}
    jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(np.asarray, both))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_attached_equals_merged_and_only_the_adapter_learns(small_model, remat):
    cfg = dataclasses.replace(small_model, remat=remat)
    base, fresh = transformer.init(cfg, jax.random.key(0)), lora.init(cfg, LORA, jax.random.key(1))
    tokens, segments = hf.rows(left=True, vocab=128)
    plain = _hidden(base, cfg, tokens, segments)
    np.testing.assert_array_equal(plain, _hidden(lora.apply_lora(base, fresh, LORA), cfg, tokens, segments))
    adapter = _full(fresh)
    attached, merged = (_hidden(f(base, adapter, LORA), cfg, tokens, segments)[segments > 0] for f in (lora.apply_lora, lora.merge))
    assert float(jnp.abs(attached - plain[segments > 0]).max()) > 0.1
    np.testing.assert_allclose(attached, merged, atol=2e-5)

    def loss(adapter, combine):
        return jnp.sum(jnp.sin(_hidden(combine(base, adapter, LORA), cfg, tokens, segments)) * segments[..., None])

    one, two = (jax.grad(loss)(adapter, f) for f in (lora.apply_lora, lora.merge))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3, rtol=2e-3), one, two)
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(one))


def test_no_gradient_of_the_size_of_the_base_is_made(small_model):
    """The point of it: temporary memory of a step does not grow with the frozen weights."""
    cfg = dataclasses.replace(small_model, width=256, ffn=1024, layers=6, head_dim=64, remat="full")
    base, adapter = (jax.eval_shape(f) for f in (
        lambda: transformer.init(cfg, jax.random.key(0)), lambda: lora.init(cfg, LORA, jax.random.key(1))
    ))  # fmt: skip
    tokens, segments = hf.rows(left=False, vocab=128)

    def loss(adapter, base, combine):
        return jnp.sum(_hidden(combine(base, adapter, LORA), cfg, tokens, segments) ** 2)

    def bytes_of(combine):
        compiled = jax.jit(lambda a, b: jax.grad(loss)(a, b, combine)).lower(adapter, base).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    temporary = {f.__name__: bytes_of(f) for f in (lora.apply_lora, lora.merge)}
    weights = sum(4 * x.size for x in jax.tree.leaves(base["layers"]))
    assert temporary["apply_lora"] < weights / 3 < weights < temporary["merge"], (temporary, weights)


def test_samples_under_an_adapter_are_those_of_the_merged_weights(small_model, one_device):
    base = jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, transformer.init(small_model, jax.random.key(0)))
    adapter = _full(lora.init(small_model, LORA, jax.random.key(1)))
    sampler = make_sampler(
        small_model, transformer.logical_axes(small_model), one_device, group=2, max_tokens=8, pad_id=0
    )  # fmt: skip
    tokens, segments = hf.rows(left=True, vocab=128)
    drawn = tokens, segments, 0, 0, traced(SamplingConfig(), ())
    out = [sampler(f(base, adapter, LORA), *drawn) for f in (lora.apply_lora, lora.merge)]
    np.testing.assert_array_equal(out[0].tokens, out[1].tokens)
    assert not np.array_equal(out[0].tokens, sampler(base, tokens, segments, 0, 0, traced(SamplingConfig(), ())).tokens)


def test_peft_loads_our_adapter_with_the_same_logits(tmp_path, one_device):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = hf.random_model("qwen2")
    folder = hf.save(model, tmp_path / "base")
    cfg = read_config(folder).model
    base, adapter = load_params(folder, cfg, one_device), _full(lora.init(cfg, LORA, jax.random.key(1)))
    save_adapter(adapter, cfg, LORA, tmp_path / "adapter", base=str(folder))
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    tokens, segments = hf.rows(left=True)
    with torch.no_grad():
        expected = theirs(**hf.torch_inputs(tokens, segments)).logits.numpy()
    hidden = _hidden(lora.apply_lora(base, adapter, LORA), cfg, tokens, segments)
    ours = np.asarray(ops.logits(hidden, ops.output_matrix(base, cfg)))
    np.testing.assert_allclose(ours[segments > 0], expected[segments > 0], atol=1e-4, rtol=1e-5)
    assert np.abs(ours - np.asarray(ops.logits(_hidden(base, cfg, tokens, segments), base["embed"])))[segments > 0].max() > 0.1

    theirs.save_pretrained(tmp_path / "again")
    a, b = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("adapter", "again"))
    hf.assert_same_tensors(a, b)
    back, found, score = load_adapter(tmp_path / "again", cfg)
    assert score is None and lora.ranks(cfg, found) == lora.ranks(cfg, LORA) and found.alpha == 6.0
    jax.tree.map(np.testing.assert_array_equal, back, adapter)


def test_an_adapter_made_by_peft_is_read(tmp_path, one_device):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = hf.random_model("llama", scalar=True)
    folder = hf.save(model, tmp_path / "base")
    options = peft.LoraConfig(
        r=4, lora_alpha=10, target_modules=["q_proj", "down_proj"], task_type="SEQ_CLS", init_lora_weights=False
    )
    theirs = peft.get_peft_model(model, options).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    found = read_config(folder)
    cfg, params = found.model, load_params(folder, found.model, one_device, scalar=True)
    adapter, options, score = load_adapter(tmp_path / "adapter", cfg)
    assert lora.ranks(cfg, options) == {"q": 4, "down": 4}
    tokens, segments = hf.rows(left=False)
    with torch.no_grad():
        expected = theirs(**hf.torch_inputs(tokens, segments)).logits[:, 0].numpy()
    whole = lora.apply_lora(params, {"model": adapter, "head": {"score": score}}, options)
    scores = heads.scores(whole, cfg, tokens, segments, hf.as_jax(segments))
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    save_adapter(adapter, cfg, options, tmp_path / "ours", base=str(folder), score=score)
    hf.assert_same_tensors(*(load_file(tmp_path / f / "adapter_model.safetensors") for f in ("adapter", "ours")))
    again = peft.PeftModel.from_pretrained(hf.random_model("llama", scalar=True), tmp_path / "ours").eval()
    with torch.no_grad():
        assert torch.equal(again(**hf.torch_inputs(tokens, segments)).logits[:, 0], torch.tensor(expected))


@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"layers.0.self_attn.q_proj": 2}},
        {"rank_pattern": {"self_attn.q_proj": 3}, "alpha_pattern": {"q_proj": 2}},
        {"rank_pattern": {r"model\.layers\.[01]\..*down_proj": 5, "q_proj": 1}, "alpha_pattern": {"layers.1.mlp.down_proj": 1}},
        {"target_modules": r"model\.layers\.1\..*(q|down)_proj"},
        {"target_modules": ["layers.0.self_attn.q_proj", "down_proj"]},
    ],
)  # fmt: skip
def test_ranks_and_scales_of_single_layers_are_those_of_peft(tmp_path, one_device, options):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = hf.random_model("qwen2")
    folder = hf.save(model, tmp_path / "base")
    options = {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 10, "init_lora_weights": False} | options
    theirs = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    cfg = read_config(folder).model
    adapter, found, _ = load_adapter(tmp_path / "adapter", cfg)
    tokens, segments = hf.rows(left=False)
    with torch.no_grad():
        expected = theirs(**hf.torch_inputs(tokens, segments)).logits.numpy()
    cfg, params = dataclasses.replace(cfg, compute_dtype="float32"), load_params(folder, cfg, one_device)
    hidden = _hidden(lora.merge(params, adapter, found), cfg, tokens, segments)
    logits = np.asarray(ops.logits(hidden, ops.output_matrix(params, cfg)))
    np.testing.assert_allclose(logits[segments > 0], expected[segments > 0], atol=1e-4)


def test_adapters_that_do_not_fit_are_refused(small_model, tmp_path):
    adapter = lora.init(small_model, LORA, jax.random.key(0))
    save_adapter(adapter, small_model, LORA, tmp_path / "good", base="x")
    config = json.loads((tmp_path / "good" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "good" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"

    def refused(message, config=config, tensors=tensors):
        folder = tmp_path / "wrong"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "adapter_model.safetensors")
        with pytest.raises(UserError, match=message):
            load_adapter(folder, small_model)

    refused("use_dora is True", config | {"use_dora": True})
    refused("use_rslora is True", config | {"use_rslora": True})
    refused("bias is 'all'", config | {"bias": "all"})
    refused("init_lora_weights is 'pissa'", config | {"init_lora_weights": "pissa"})
    refused("peft_type is 'IA3'", config | {"peft_type": "IA3"})
    for field, value in (("r", None), ("r", 0), ("r", "4"), ("lora_alpha", None), ("lora_alpha", "x"), ("lora_alpha", -1)):
        refused(rf"adapter_config\.json: {field} is {value!r}; expected a positive", config | {field: value})
    refused(r"rank_pattern is \[\]; expected an object", config | {"rank_pattern": []})
    refused(r"rank_pattern: q_proj is '4'; expected", config | {"rank_pattern": {"q_proj": "4"}})
    refused("target_modules is 7", config | {"target_modules": 7})
    refused(r"target_modules is \['q_\('\], which is not", config | {"target_modules": "q_("})
    refused("expected an object, found list", [])
    refused(r"unknown modules: c_attn; this model's blocks have q_proj", config | {"target_modules": ["c_attn"]})
    refused("unknown modules: qq_proj, lm_head", config | {"target_modules": [*config["target_modules"], "qq_proj", "lm_head"]})
    refused("matches no matrix", config | {"target_modules": "c_attn"})
    refused("lacks .*layers.1.self_attn.v_proj.lora_B", tensors={n: t for n, t in tensors.items() if n != name})
    refused("not part of the adapter: extra", tensors=tensors | {"extra": np.ones(2, np.float32)})
    wrong = {n: t[:1] if "lora_B" in n and "q_proj" in n else t for n, t in tensors.items()}
    refused(r"q_proj\.lora_B\.weight has shape", tensors=wrong)
    for field, value in (("lora_alpha", float("nan")), ("lora_alpha", float("inf")), ("lora_alpha", 10**300), ("r", 10**6)):
        refused(rf"{field} is .*; expected a positive number, at most", config | {field: value})
    refused(r"alpha_pattern: q_proj is nan", config | {"alpha_pattern": {"q_proj": float("nan")}})
    for field, value in (
        ("alora_invocation_tokens", [1, 2]), ("lora_bias", True), ("layers_to_transform", [0]), ("target_parameters", ["x"]),
        ("layer_replication", [[0, 1]]), ("trainable_token_indices", [1]), ("use_some_new_kind", {"a": 1}),
        ("exclude_modules", ["q_proj"]),
    ):  # fmt: skip
        refused(f"{field} is .* not supported; only plain LoRA is", config | {field: value})
    for pattern in (r"(\w+|\.)+!", "(.*)*(.*)*(.*)*(.*)*x", "(" * 500, "*", "(((.|..|...)*)*)*!"):
        for field, value in (("target_modules", pattern), ("rank_pattern", {pattern: 3})):
            refused(f"{field} (needs more than 1 s or 256 MiB|is .* not a regular expression)", config | {field: value})
    spoiled = {n: np.where(np.arange(t.size).reshape(t.shape) == 1, np.nan, t) if n == name else t for n, t in tensors.items()}
    refused(f"contains NaN or infinity: {name}", tensors={n: t.astype(np.float32) for n, t in spoiled.items()})
    refused(f"{name} has shape .* and dtype I32", tensors=tensors | {name: tensors[name].astype(np.int32)})
    longer = config | {"target_modules": [f"{'mlp' if m[0] in 'gud' else 'self_attn'}.{m}" for m in config["target_modules"]]}
    (tmp_path / "good" / "adapter_config.json").write_text(json.dumps(longer))
    assert lora.ranks(small_model, load_adapter(tmp_path / "good", small_model)[1]) == lora.ranks(small_model, LORA)
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        load_adapter(tmp_path, small_model)
