"""bitnet: BitNet b1.58 2B-4T; Llama's block with squared ReLU and two more norms.

Source: BitNet b1.58 2B4T technical report (Ma et al. 2025), section 2.
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

# transformers 5.23, BitNetConfig.
_DEFAULTS = Defaults(
    vocab_size=128256,
    hidden_size=2560,
    intermediate_size=6912,
    num_hidden_layers=30,
    num_attention_heads=20,
    num_key_value_heads=5,
    max_position_embeddings=2048,
    rms_norm_eps=1e-5,
    hidden_act="relu2",
    rope_theta=500000.0,
)


def spec_from_config(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder that a bitnet config.json describes.

    Raises:
        UnsupportedArchitectureError: facts key, value, expected.
    """
    reader = ConfigReader(config)
    bias = reader.boolean("attention_bias", False)
    reader.require("mlp_bias", (False,), "bitnet has no biases in the MLP")
    refuse_windows(reader)
    refuse_bitnet_input_norm(reader)
    extras = Extras(qkv_bias=bias, o_bias=bias, sub_norms=("attn_sub_norm", "ffn_sub_norm"))
    return build_spec(reader, "bitnet", "BitNetForCausalLM", _DEFAULTS, extras)
