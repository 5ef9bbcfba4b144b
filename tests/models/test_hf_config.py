"""config.json of a folder: what is read, and that whatever would change the arithmetic is refused with its name."""

import pytest

from rlaif_jax.errors import UserError
from rlaif_jax.models.hf_config import from_hf, to_hf
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
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, r"config\.json: model\.rope_scaling: expected factor >= 1"),
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
