"""The decoder against transformers' torch models, and the chunked head against the dense one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlaif_jax.errors import UserError
from rlaif_jax.models import heads, ops, transformer
from rlaif_jax.models.model_config import PRESETS, ModelConfig, parameter_count, preset

FAMILIES = {
    "qwen2": {"qkv_bias": True, "tied_embeddings": True},
    "qwen3": {"qk_norm": True, "tied_embeddings": False},
    "llama": {"tied_embeddings": False},
}


def _random(cfg, seed=0):
    params = transformer.init(cfg, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return jax.tree.unflatten(tree, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def _torch_model(family, cfg, params):
    torch = pytest.importorskip("torch")
    import transformers

    kind = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}[family]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.width,
        intermediate_size=cfg.ffn,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        num_key_value_heads=cfg.kv_heads,
        head_dim=cfg.head_dim,
        rms_norm_eps=cfg.norm_eps,
        tie_word_embeddings=cfg.tied_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_theta},
        attn_implementation="eager",
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    names = {"attn_norm": "input_layernorm.weight", "mlp_norm": "post_attention_layernorm.weight"}
    names |= {n: f"self_attn.{n}_proj.weight" for n in "qkvo"} | {f"{n}_bias": f"self_attn.{n}_proj.bias" for n in "qkv"}
    names |= {n: f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")} | {f"{n}_norm": f"self_attn.{n}_norm.weight" for n in "qk"}
    state = {"model.embed_tokens.weight": params["embed"], "model.norm.weight": params["final_norm"]}
    state["lm_head.weight"] = ops.output_matrix(params, cfg)
    for name, stacked in params["layers"].items():
        for i in range(cfg.layers):
            weight = stacked[i].T if stacked[i].ndim == 2 else stacked[i]
            state[f"model.layers.{i}.{names[name]}"] = weight
    missing, unexpected = model.load_state_dict({k: torch.tensor(np.asarray(v)) for k, v in state.items()}, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return torch, model


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(family):
    cfg = ModelConfig(vocab_size=96, width=48, ffn=80, layers=3, heads=4, kv_heads=2, head_dim=16, **FAMILIES[family])
    params = _random(cfg)
    torch, model = _torch_model(family, cfg, params)
    tokens = np.random.default_rng(0).integers(1, 96, (3, 17))
    segments = np.ones_like(tokens)
    segments[0, :5] = 0  # left padding
    hidden = transformer.forward(params, cfg, tokens, segments, ops.positions_of(jnp.array(segments)))
    ours = np.asarray(ops.logits(hidden, ops.output_matrix(params, cfg)))
    with torch.no_grad():
        theirs = model(
            torch.tensor(tokens),
            attention_mask=torch.tensor(segments),
            position_ids=torch.tensor(np.maximum(segments.cumsum(1) - 1, 0)),
        ).logits.numpy()
    np.testing.assert_allclose(ours[segments > 0], theirs[segments > 0], atol=1e-4)


def test_padding_and_packing_change_nothing(small_model):
    params = _random(small_model)
    rng = np.random.default_rng(1)
    a, b = rng.integers(1, 128, 7), rng.integers(1, 128, 5)

    def hidden(tokens, segments):
        segments = jnp.array([segments])
        positions = jnp.concatenate([jnp.arange(n) for n in np.unique(np.asarray(segments), return_counts=True)[1]])[None]
        return transformer.forward(params, small_model, jnp.array([tokens]), segments, positions)[0]

    alone = [hidden(x, [1] * len(x)) for x in (a, b)]
    packed = hidden([*a, *b], [1] * 7 + [2] * 5)
    np.testing.assert_allclose(packed, jnp.concatenate(alone), atol=1e-5)
    left = transformer.forward(
        params, small_model, jnp.array([[0, 0, 0, *a]]), jnp.array([[0] * 3 + [1] * 7]), jnp.array([[0, 0, 0, *range(7)]])
    )[0, 3:]
    np.testing.assert_allclose(left, alone[0], atol=1e-5)


def test_chunked_logprobs_equal_dense_ones_with_gradients(small_model):
    params = _random(small_model)
    tokens = jnp.array(np.random.default_rng(2).integers(1, 128, (2, 23)))
    ones, positions = jnp.ones_like(tokens), jnp.tile(jnp.arange(23), (2, 1))

    def value(params, chunk):
        cfg = dataclasses.replace(small_model, logit_chunk=chunk)
        hidden = transformer.forward(params, cfg, tokens, ones, positions)
        logp, entropy = transformer.logprobs(params, cfg, hidden[:, :-1], tokens[:, 1:], 0.7)
        return jnp.sum(logp) + jnp.sum(entropy)

    dense, chunked = (jax.value_and_grad(value)(params, chunk) for chunk in (64, 5))
    np.testing.assert_allclose(dense[0], chunked[0], rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), dense[1], chunked[1])


@pytest.mark.parametrize("remat", ["full", pytest.param("dots", marks=pytest.mark.slow)])
def test_remat_changes_no_gradient(small_model, remat):
    params, tokens = _random(small_model), jnp.arange(1, 21).reshape(2, 10)

    def value(params, cfg):
        return jnp.sum(transformer.forward(params, cfg, tokens, jnp.ones_like(tokens), tokens * 0 + jnp.arange(10)) ** 2)

    plain = jax.grad(value)(params, small_model)
    again = jax.grad(value)(params, dataclasses.replace(small_model, remat=remat))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3), plain, again)


def test_parameter_counts_of_known_models():
    assert parameter_count(preset("qwen2.5-7b")) == 7_615_616_512
    assert parameter_count(preset("qwen2.5-0.5b")) == 494_032_768
    assert parameter_count(preset("llama3-8b")) == 8_030_261_248
    assert 9e5 < parameter_count(preset("tiny-1m").with_vocab(1500)) < 1.2e6
    assert all(cfg.heads % cfg.kv_heads == 0 for cfg in PRESETS.values())


def test_scores_read_the_last_real_token(small_model):
    params = heads.init(small_model, jax.random.key(0))
    params["head"]["score"] = jax.random.normal(jax.random.key(1), (32,))
    tokens = jnp.array([[5, 6, 7, 0, 0], [0, 0, 5, 6, 7]])
    segments = (tokens > 0).astype(jnp.int32)
    scores = heads.scores(params, small_model, tokens, segments, ops.positions_of(segments))
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    assert abs(float(scores[0])) > 1e-3


def test_a_wrong_shape_is_refused_with_the_field():
    with pytest.raises(UserError, match=r"model\.heads"):
        ModelConfig(heads=3, kv_heads=2)
    with pytest.raises(UserError, match="tokenizer has 100"):
        ModelConfig(vocab_size=50).with_vocab(100)
