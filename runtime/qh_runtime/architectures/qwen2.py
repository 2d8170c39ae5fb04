"""qwen2: Qwen2 and Qwen2.5; Llama's block with biases on queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qh_runtime.architectures.base import DecoderSpec
from qh_runtime.architectures.config_reader import ConfigReader
from qh_runtime.architectures.llama_block import Defaults, Extras, build_spec, window_layers

__all__ = ["spec_from_config"]

# transformers 5.23, Qwen2Config.
_DEFAULTS = Defaults(
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=22016,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=32768,
    rms_norm_eps=1e-6,
)


def spec_from_config(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder that a qwen2 config.json describes.

    Raises:
        UnsupportedArchitectureError: facts key, value, expected.
    """
    reader = ConfigReader(config)
    # Some exporters write this key. The original has the biases whatever it says, and a checkpoint
    # without them fails on the missing tensors.
    reader.boolean("attention_bias", True)
    reader.require("mlp_bias", (False,), "qwen2 has no biases in the MLP")
    extras = Extras(qkv_bias=True, windows=window_layers(reader, _DEFAULTS))
    return build_spec(reader, "qwen2", "Qwen2ForCausalLM", _DEFAULTS, extras)
