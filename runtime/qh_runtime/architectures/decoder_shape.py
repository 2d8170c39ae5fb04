"""DecoderShape from DecoderSpec: the numbers that the C++ decoder wants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qh_runtime.architectures.base import DecoderSpec
from qh_runtime.architectures.rope import inverse_frequencies

if TYPE_CHECKING:
    from qh_kernels.decoder import DecoderShape

__all__ = ["decoder_shape"]


def decoder_shape(spec: DecoderSpec) -> DecoderShape:
    """The shape of a spec; `inv_freq` holds the float32 values that transformers computes."""
    # Here, so that whoever only wants to know what a config describes loads no NumPy.
    from qh_kernels.decoder import DecoderShape, LayerShape

    return DecoderShape(
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_attention_heads=spec.num_attention_heads,
        num_key_value_heads=spec.num_key_value_heads,
        head_dim=spec.head_dim,
        vocab_size=spec.vocab_size,
        rms_norm_eps=spec.rms_norm_eps,
        activation=spec.activation,
        inv_freq=inverse_frequencies(spec.rope, spec.head_dim),
        layers=tuple(LayerShape(sliding_window=layer.sliding_window) for layer in spec.layers),
    )
