"""Configs as published models have them, extra keys included: none is refused, sizes are right.

Parameter counts are those the models' pages state: matrices plus norms and biases.
"""

from __future__ import annotations

from typing import Any

import pytest

from qh_runtime.architectures import decoder_shape, spec_from_config
from qh_runtime.architectures.base import DecoderSpec
from qh_runtime.errors import UnsupportedArchitectureError

COMMON = {"hidden_act": "silu", "initializer_range": 0.02, "use_cache": True}
LLAMA_3_2_1B = {
    **COMMON,
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "vocab_size": 128256,
    "_name_or_path": "a/b",
    "_commit_hash": "4e20de36",
}
SMOLLM2_135M = {
    **COMMON,
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    "vocab_size": 49152,
}
QWEN2_5_0_5B = {
    **COMMON,
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_0_6B = {
    **COMMON,
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MISTRAL_7B_V01 = {
    **COMMON,
    "architectures": ["MistralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
MISTRAL_NEMO = {
    **MISTRAL_7B_V01,
    "head_dim": 128,
    "hidden_size": 5120,
    "max_position_embeddings": 1024000,
    "num_hidden_layers": 40,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "vocab_size": 131072,
}
BITNET_2B = {
    "architectures": ["BitNetForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_bitnet.BitNetConfig"},
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "relu2",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 6912,
    "max_position_embeddings": 4096,
    "model_type": "bitnet",
    "rms_norm_eps": 1e-05,
    "num_attention_heads": 20,
    "num_hidden_layers": 30,
    "num_key_value_heads": 5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 128256,
    "quantization_config": {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
    },
}
FIRST_BITNET_LARGE = {
    **COMMON,
    "architectures": ["BitnetForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_size": 1536,
    "input_bits": 8,
    "intermediate_size": 4096,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "num_key_value_heads": 16,
    "pad_token_id": 32000,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": 32002,
    "weight_bits": 1,
}
FALCON3_7B_TERNARY = {
    **COMMON,
    "activation": "swiglu",
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "eos_token_id": 11,
    "head_dim": 256,
    "hidden_size": 3072,
    "intermediate_size": 23040,
    "is_bitnet_config": True,
    "max_position_embeddings": 32768,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "quantization_config": {"modules_to_not_convert": None, "quant_method": "bitnet"},
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000042,
    "tie_word_embeddings": False,
    "vocab_size": 131072,
}


def _all_parameters(spec: DecoderSpec) -> int:
    """Matrices, biases and norms."""
    total = spec.parameters + spec.hidden_size
    for layer in spec.layers:
        total += 2 * spec.hidden_size
        total += sum(linear.out_features for linear in layer.linears if linear.bias)
        total += 2 * spec.head_dim if layer.q_norm else 0
        total += spec.hidden_size if layer.attention_sub_norm else 0
        total += spec.intermediate_size if layer.mlp_sub_norm else 0
    return total


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (LLAMA_3_2_1B, 1_235_814_400),
        (SMOLLM2_135M, 134_515_008),
        (QWEN2_5_0_5B, 494_032_768),
        (QWEN3_0_6B, 596_049_920),
        (MISTRAL_7B_V01, 7_241_732_096),
        (MISTRAL_NEMO, 12_247_782_400),
        (FALCON3_7B_TERNARY, 7_455_550_464),
        (BITNET_2B, 2_412_820_480),
        (FIRST_BITNET_LARGE, 728_842_752),
    ],
)
def test_published_config(config: dict[str, Any], parameters: int) -> None:
    spec = spec_from_config(config)
    assert _all_parameters(spec) == parameters
    assert decoder_shape(spec).inv_freq[0] > 0


def test_windows_of_published_configs() -> None:
    assert {x.sliding_window for x in spec_from_config(MISTRAL_7B_V01).layers} == {4096}
    for config in (MISTRAL_NEMO, QWEN2_5_0_5B, QWEN3_0_6B):
        assert {x.sliding_window for x in spec_from_config(config).layers} == {0}


def test_yarn_variant_of_a_published_config_is_refused() -> None:
    yarn = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    with pytest.raises(UnsupportedArchitectureError) as caught:
        spec_from_config({**QWEN2_5_0_5B, "rope_scaling": yarn})
    assert caught.value.facts["value"] == "'yarn'"
