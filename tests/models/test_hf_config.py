"""config.json of a folder: what is read, and that whatever would change the arithmetic is refused with its name."""

import pytest

from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.errors import UserError
from rlaif_jax.models.hf_config import from_hf, read_config, to_hf
from tests import hf

MISTRAL, QWEN2, QWEN3 = (
    {"model_type": name.lower(), "architectures": [f"{name}ForCausalLM"]} for name in ("Mistral", "Qwen2", "Qwen3")
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}, "lacks low_freq_factor"),
        ({"rope_scaling": "yarn"}, "rope scaling is 'yarn'; expected an object"),
        ({"rope_scaling": {"type": "linear", "factor": "four"}}, "rope scaling: factor is 'four'; expected a positive number"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, r"config\.json: .*factor is 0\.5"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps is 'x'; expected a positive number"),
        ({"head_dim": "12"}, "head_dim is '12'"),
        ({"num_key_value_heads": "2"}, "num_key_value_heads is '2'"),
        ({"num_key_value_heads": 3}, r"config\.json: model\.heads \(4\) must be a multiple"),
        ({"max_position_embeddings": "512"}, "max_position_embeddings is '512'"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM'"),
        ({"architectures": ["Qwen2ForCausalLM"]}, r"\['Qwen2ForCausalLM'\]; expected one of LlamaForCausalLM, .* for llama"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"hidden_size": "48"}, "hidden_size is '48'"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"architectures": ["LlamaModel"]}, r"\['LlamaModel'\]; expected one of LlamaForCausalLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "2 labels"),
        (MISTRAL | {"sliding_window": 256}, "sliding_window is 256 with 512"),
        (MISTRAL | {"sliding_window": "256"}, "sliding_window is '256'"),
        (QWEN2 | {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, "sliding_window"),
        (QWEN3 | {"layer_types": ["sliding_attention"], "sliding_window": 64}, "sliding_window"),
        ({"model_type": {"a": 1}}, "model_type is {'a': 1}"),
        ({"architectures": False}, "architectures is False"),
        ({"architectures": [[]]}, r"architectures is \[\[\]\]"),
        ({"architectures": ["LlamaForSequenceClassification"], "id2label": 3}, "with 3 labels"),
        ({"layer_types": 1e308}, r"layer_types is 1e\+308; expected a list"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; expected true or false"),
        ({"attention_bias": []}, r"attention_bias is \[\]; expected true or false"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected a positive integer, at most 2,048"),
        ({"hidden_size": 10**30}, "hidden_size is 10{30}; expected"),
        ({"vocab_size": int("9" * 400)}, "vocab_size is a number of more than 80 digits"),
        ({"rope_theta": 10**400}, "rope_theta is a number of more than 80 digits"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        (QWEN2 | {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": "1"}, "max_window_layers is '1'"),
    ],
)
def test_what_would_change_the_arithmetic_is_refused(change, message):
    raw = hf.SIZES | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "float32"}
    assert from_hf(raw).model.width == 48
    with pytest.raises(UserError, match=message):
        from_hf(raw | change)


def test_windows_that_hide_nothing_are_accepted():
    raw = hf.SIZES | {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 64, "max_window_layers": 1}
    assert from_hf(raw).model.qkv_bias
    assert from_hf(raw | {"use_sliding_window": True, "max_window_layers": 3}).model.qkv_bias
    assert from_hf(raw | {"model_type": "mistral", "sliding_window": 512}).model.max_positions == 512


def test_the_older_spelling_of_rope_is_read():
    raw = hf.SIZES | {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": {**hf.LLAMA3, "type": "llama3"}}
    raw["rope_scaling"].pop("rope_theta")
    found = from_hf(raw).model
    assert found.rope_theta == 5e5 and found.rope_scaling.original_positions == 32
    assert from_hf(to_hf(found, scalar=False, dtype="float32", eos_ids=(1,), pad_id=0)).model == found


def test_a_name_on_the_hub_is_answered_with_the_way_to_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no config\.json; .* hf download Qwen/Qwen2\.5-0\.5B --local-dir Qwen2\.5-0\.5B$"):
        read_config("Qwen/Qwen2.5-0.5B")
    with pytest.raises(UserError, match="hf download org/name --local-dir name"):
        Tokenizer.load("org/name")
    with pytest.raises(UserError, match="of a Hugging Face model$"):
        read_config(tmp_path / "models")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe{}", b'{"a": ' + b"9" * 5000 + b"}", b"[]", b"", b"{", b"null"])
def test_a_file_that_is_no_object_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json: (not JSON|expected an object)"):
        read_config(tmp_path)
