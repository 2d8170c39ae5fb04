"""Configs as published models have them, extra keys included: none is refused, sizes are right.

Parameter counts are those the models' pages state: matrices plus norms and biases.
"""

from __future__ import annotations

from typing import Any

import pytest

from qh_runtime.architectures import decoder_shape, spec_from_config
from qh_runtime.architectures.base import DecoderSpec
from qh_runtime.checkpoints.schemes import require_known_scheme
from qh_runtime.errors import UnsupportedArchitectureError, UnsupportedTensorError

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


def _newer(config: dict[str, Any]) -> dict[str, Any]:
    """The same config as transformers 5 saves it."""
    found = {key: value for key, value in config.items() if not key.startswith("_")}
    scaling = found.pop("rope_scaling", None) or {"rope_type": "default"}
    found["rope_parameters"] = {**scaling, "rope_theta": found.pop("rope_theta")}
    found["dtype"] = found.pop("torch_dtype", "bfloat16")
    return found | {"transformers_version": "5.23.0", "pad_token_id": None}


@pytest.mark.parametrize(
    "config",
    [LLAMA_3_2_1B, SMOLLM2_135M, QWEN2_5_0_5B, QWEN3_0_6B, MISTRAL_7B_V01, MISTRAL_NEMO, BITNET_2B],
)
def test_both_spellings_are_the_same_model(config: dict[str, Any]) -> None:
    assert spec_from_config(_newer(config)) == spec_from_config(config)
    layers = config["num_hidden_layers"]
    if config["model_type"] in ("qwen2", "qwen3"):
        listed = {**_newer(config), "layer_types": ["full_attention"] * layers}
        assert spec_from_config(listed) == spec_from_config(config)


# What others have published under the five types: base config and what differs.
ACCEPTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Llama 1, first conversion": (
        MISTRAL_7B_V01,
        {
            "model_type": "llama",
            "architectures": ["LLaMAForCausalLM"],
            "num_key_value_heads": None,
            "intermediate_size": 11008,
            "sliding_window": None,
            "max_sequence_length": 2048,
            "pad_token_id": -1,
        },
    ),
    "position interpolation": (
        SMOLLM2_135M,
        {"rope_scaling": {"factor": 4.0, "type": "linear"}},
    ),
    "sliding window without use": (
        QWEN2_5_0_5B,
        {"sliding_window": 131072, "max_window_layers": 28, "use_sliding_window": False},
    ),
    "sliding window null": (QWEN2_5_0_5B, {"sliding_window": None, "max_window_layers": 70}),
    "llama with the keys of qwen": (
        SMOLLM2_135M,
        {"use_sliding_window": False, "max_window_layers": 21, "sliding_window": None},
    ),
    "mistral, head_dim null": (MISTRAL_7B_V01, {"head_dim": None, "sliding_window": None}),
    "unsloth": (
        LLAMA_3_2_1B,
        {"unsloth_fixed": True, "unsloth_version": "2025.1", "pad_token_id": 128004},
    ),
    "distilled into qwen2": (
        QWEN2_5_0_5B,
        {"use_mrope": False, "tie_word_embeddings": False, "rope_theta": 10000},
    ),
    "bitnet masters": (
        BITNET_2B,
        {
            "quantization_config": {
                "quant_method": "bitnet",
                "linear_class": "autobitlinear",
                "quantization_mode": "online",
            }
        },
    ),
    "bitnet, theta of 1e11": (FALCON3_7B_TERNARY, {"rope_theta": 1e11, "num_logits_to_keep": None}),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_variants_of_published_configs(kind: str) -> None:
    base, changes = ACCEPTED[kind]
    config = {**base, **changes}
    spec = spec_from_config(config)
    require_known_scheme(config)
    assert {layer.sliding_window for layer in spec.layers} == {0}


# Published too, and not what these types compute: base, what differs, the key that must be named.
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "yarn": (
        QWEN2_5_0_5B,
        {
            "rope_scaling": {
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
                "type": "yarn",
            }
        },
        "type",
    ),
    "yarn, newer": (
        QWEN3_0_6B,
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}},
        "rope_type",
    ),
    "dynamic": (SMOLLM2_135M, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type"),
    "multimodal positions": (
        QWEN2_5_0_5B,
        {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
        "type",
    ),
    "a million tokens by chunks": (
        QWEN2_5_0_5B,
        {"dual_chunk_attention_config": {"chunk_size": 262144, "local_size": 8192}},
        "dual_chunk_attention_config",
    ),
    "windows in llama": (
        SMOLLM2_135M,
        {"use_sliding_window": True, "max_window_layers": 21},
        "use_sliding_window",
    ),
    "interleaved rotation": (SMOLLM2_135M, {"rope_interleaved": True}, "rope_interleaved"),
    "scaled embeddings": (SMOLLM2_135M, {"embedding_multiplier": 12.0}, "embedding_multiplier"),
    "capped logits": (MISTRAL_7B_V01, {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    "searched blocks": (
        LLAMA_3_2_1B,
        {"architectures": ["DeciLMForCausalLM"], "block_configs": [{}]},
        "architectures",
    ),
    "reward model": (QWEN2_5_0_5B, {"architectures": ["Qwen2ForRewardModel"]}, "architectures"),
    "draft head": (LLAMA_3_2_1B, {"architectures": ["LlamaForCausalLMEagle3"]}, "architectures"),
    "experts": (QWEN3_0_6B, {"model_type": "qwen3_moe", "num_experts": 128}, "model_type"),
    "images": (
        {"model_type": "mistral3", "text_config": {"model_type": "mistral"}, "vision_config": {}},
        {},
        "model_type",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_mathematics_is_refused_by_its_key(kind: str) -> None:
    base, changes, key = REFUSED[kind]
    with pytest.raises(UnsupportedArchitectureError) as caught:
        spec_from_config({**base, **changes})
    assert caught.value.facts["key"] == key
    assert caught.value.hint


@pytest.mark.parametrize(
    "section",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {"group_size": 64, "bits": 4},
    ],
)
def test_other_quantization_is_refused_by_its_method(section: dict[str, Any]) -> None:
    """The decoder is one that is known; what its layers hold is not."""
    config = {**QWEN3_0_6B, "quantization_config": section}
    spec_from_config(config)
    with pytest.raises(UnsupportedTensorError) as caught:
        require_known_scheme(config)
    assert caught.value.facts["quant_method"] == section.get("quant_method", "")
