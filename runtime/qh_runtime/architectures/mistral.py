"""mistral: Llama's block with a sliding window in all layers (v0.1) or in none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qh_runtime.architectures.base import DecoderSpec
from qh_runtime.architectures.config_reader import ConfigReader
from qh_runtime.architectures.llama_block import (
    Defaults,
    Extras,
    build_spec,
    layer_count,
    sliding_window,
)

__all__ = ["spec_from_config"]

# transformers 5.23, MistralConfig.
_DEFAULTS = Defaults(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=4096 * 32,
    rms_norm_eps=1e-6,
)
_DEFAULT_WINDOW = 4096


def spec_from_config(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder that a mistral config.json describes.

    Raises:
        UnsupportedArchitectureError: facts key, value, expected.
    """
    reader = ConfigReader(config)
    reader.require("attention_bias", (False,), "mistral layers have no biases")
    reader.require("mlp_bias", (False,), "mistral layers have no biases")
    window = sliding_window(reader, _DEFAULT_WINDOW) or 0
    layers = layer_count(reader, _DEFAULTS)
    types = reader.strings("layer_types", layers)
    expected = "sliding_attention" if window else "full_attention"
    if types is not None and any(name != expected for name in types):
        # transformers ignores the list here; the model was made for a class that does not.
        raise reader.refuse("layer_types", f"{expected} for all layers")
    extras = Extras(windows=(window,) * layers)
    return build_spec(reader, "mistral", "MistralForCausalLM", _DEFAULTS, extras)
