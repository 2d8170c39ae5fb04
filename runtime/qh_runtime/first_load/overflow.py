"""Where values stop being finite: the tensor to blame, or at least the block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qh_kernels.decoder import DecoderWeights
from qh_runtime.architectures import DecoderSpec
from qh_runtime.errors import KernelError
from qh_runtime.first_load.layer import Arithmetic, decoder_of_layers
from qh_runtime.first_load.weights import not_finite

__all__ = ["NotFinite", "find_not_finite"]


@dataclass(frozen=True)
class NotFinite:
    """tensor: holds a NaN or an infinity; None where all weights are finite. where: in words."""

    tensor: str | None
    where: str


def find_not_finite(
    spec: DecoderSpec, weights: DecoderWeights, tokens: Sequence[int], how: Arithmetic
) -> NotFinite:
    """Find what made a pass over the tokens end in a value that is not finite.

    A NaN stays in the residual stream, so the block is found by halving; only its matrices are
    scanned, or embedding and head where every block comes out finite.
    """
    low, high = 0, len(weights.layers) + 1  # the first `low` blocks are fine, the first `high` not
    while high - low > 1:
        middle = (low + high) // 2
        if _is_finite(spec, weights, slice(0, middle), tokens, how):
            low = middle
        else:
            high = middle
    block = high - 1
    if block == len(weights.layers):
        return NotFinite(not_finite(spec, weights), "the head")
    tensor = not_finite(spec, weights, block)
    if tensor is None and block == 0:
        tensor = not_finite(spec, weights)
    return NotFinite(tensor, f"layer {block}")


def _is_finite(
    spec: DecoderSpec,
    weights: DecoderWeights,
    layers: slice,
    tokens: Sequence[int],
    how: Arithmetic,
) -> bool:
    with decoder_of_layers(spec, weights, layers, how, len(tokens)) as decoder:
        try:
            decoder.prefill(tokens)
        except KernelError as error:
            if "position" in error.facts:
                return False
            raise
    return True
