"""llama: Llama 2 and 3, and everything published under their model type (SmolLM2, Falcon3).

Checkpoints with BitNet-packed weights and this model type run unchanged: their ternary tensors
decide about the arithmetic of each linear layer, not the architecture. The first BitNet b1.58
models (class BitnetForCausalLM, small n) have this model type too, and two more norms.
Source of those: The Era of 1-bit LLMs (Ma et al. 2024), and the training code published with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qh_runtime.architectures.base import DecoderSpec
from qh_runtime.architectures.config_reader import ConfigReader
from qh_runtime.architectures.llama_block import (
    Defaults,
    Extras,
    build_spec,
    refuse_bitnet_input_norm,
    refuse_windows,
)

__all__ = ["spec_from_config"]

_FIRST_BITNET = "BitnetForCausalLM"

# transformers 5.23, LlamaConfig.
_DEFAULTS = Defaults(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=None,
    max_position_embeddings=2048,
    rms_norm_eps=1e-6,
)


def spec_from_config(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder that a llama config.json describes.

    Raises:
        UnsupportedArchitectureError: facts key, value, expected.
    """
    reader = ConfigReader(config)
    attention_bias = reader.boolean("attention_bias", False)
    mlp_bias = reader.boolean("mlp_bias", False)
    refuse_windows(reader)
    refuse_bitnet_input_norm(reader)
    # The bits of that first BitNet release; other widths were never published.
    reader.require("weight_bits", (1,), "only ternary weights are supported")
    reader.require("input_bits", (8,), "only int8 activations are supported")
    is_first_bitnet = _FIRST_BITNET in (reader.strings("architectures") or [])
    extras = Extras(
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=mlp_bias,
        sub_norms=("inner_attn_ln", "ffn_layernorm") if is_first_bitnet else None,
    )
    class_name = _FIRST_BITNET if is_first_bitnet else "LlamaForCausalLM"
    return build_spec(reader, "llama", class_name, _DEFAULTS, extras)
