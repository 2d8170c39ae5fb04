"""Decoder specs in the shapes of known models, from configs that the architectures read."""

from __future__ import annotations

from typing import Any

from qh_runtime.architectures import DecoderSpec, spec_from_config

__all__ = ["BITNET_2B", "LLAMA_1B", "PROSE_7M", "TINY_QWEN3", "spec_of"]

BITNET_2B: dict[str, Any] = {
    "model_type": "bitnet",
    "hidden_size": 2560,
    "num_hidden_layers": 30,
    "intermediate_size": 6912,
    "num_attention_heads": 20,
    "num_key_value_heads": 5,
    "vocab_size": 128256,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "relu2",
    "tie_word_embeddings": True,
    "rope_theta": 500000.0,
}
LLAMA_1B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
PROSE_7M: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "intermediate_size": 688,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}
TINY_QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 56,
    "num_hidden_layers": 3,
    "intermediate_size": 104,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "vocab_size": 131,
    "max_position_embeddings": 129,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}


def spec_of(config: dict[str, Any], **changes: Any) -> DecoderSpec:
    """The decoder of a config with some values changed."""
    return spec_from_config({**config, **changes})
