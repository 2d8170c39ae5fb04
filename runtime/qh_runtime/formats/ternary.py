"""ternary: weights -1, 0, 1 times a scale, 2 bits each; activations are int8 per token.

Tile (16 rows, Kp = K padded to 16; little-endian), a multiple of 64 bytes:

    Kp / 16 blocks of 64 bytes: byte 4r + t of block b holds, in bits 2i..2i+1 (i = 0..3),
        code + 1 of column 16b + 4i + t; field value 3 is never written
    f32 scale[16]                                                     w = scale[r] * code

The published method has one scale per tensor; it is stored once per row, so that fused and
per-row-scaled checkpoints have the same form.

Quantizer: s = max(mean|W|, 1e-5) over the whole tensor; code = clip(round_half_even(w / s), -1, 1).
Bound: abs error <= max(s / 2, |w| - s) + (s + |w|) * 2**-20: rounding inside, clipping outside, and
the float32 rounding of s and of this bound itself.
Source: Ma et al. 2024, "The Era of 1-bit LLMs" (BitNet b1.58), equations 1 to 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qh_runtime.formats.base import Codes, Scales, Shape
from qh_runtime.formats.families.tiled import RowScales, TiledFormat, Words, pad_codes

__all__ = ["FORMAT", "absmean", "ternary_codes"]

# Smallest scale, from the published method.
_EPSILON = 1e-5


def absmean(chunks: Iterable[NDArray[np.float32]]) -> np.float32:
    """Return s = max(mean|W|, 1e-5) of a tensor given in chunks; summed in float64."""
    total, count = 0.0, 0
    for chunk in chunks:
        total += float(np.abs(chunk).sum(dtype=np.float64))
        count += chunk.size
    return np.float32(max(total / max(count, 1), _EPSILON))


def ternary_codes(weights: NDArray[np.float32], scale: np.float32) -> NDArray[np.int8]:
    """Return clip(round_half_even(w / scale), -1, 1) as int8, same shape."""
    q = weights / scale
    np.rint(q, out=q)
    np.clip(q, -1, 1, out=q)
    return q.astype(np.int8)


@dataclass(frozen=True)
class TernaryFormat(RowScales, TiledFormat):
    """Ternary codes int8 (N, K), scales float32 (N,) or one for the tensor, shape ()."""

    def quantize(self, weights: NDArray[np.float32]) -> tuple[Codes, Scales]:
        """Codes (N, K) and the one scale () of the tensor; rows are not independent here."""
        self.check_weights(weights)
        scale = absmean([weights])
        if not np.isfinite(scale):
            raise self._error("weights", "finite", f"mean magnitude {scale}")
        return ternary_codes(weights, scale), np.asarray(scale, np.float32)

    def dequantize(self, codes: Codes, scales: Scales) -> NDArray[np.float32]:
        column = np.broadcast_to(np.asarray(scales, np.float32), codes.shape[:1])[:, None]
        return np.asarray(codes.astype(np.float32) * column, np.float32)

    def error_bound(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        scale = absmean([weights])
        size = np.abs(weights)
        bound = np.maximum(scale / 2, size - scale) + (scale + size) * np.float32(2**-20)
        return np.asarray(bound, np.float32)

    def _words(self, codes: Codes, padded: Shape) -> Words:
        fields = pad_codes(codes, padded, 0).view(np.uint8) + np.uint8(1)
        quads = fields.view(np.dtype("<u4")).reshape(padded[0], -1, 4)
        # A byte is at most 2, so shifts up to 6 never leave their byte.
        words = quads[:, :, 3] << np.uint32(2)
        for i in (2, 1):
            words |= quads[:, :, i]
            words <<= np.uint32(2)
        words |= quads[:, :, 0]
        return words

    def _codes(self, words: Words) -> Codes:
        out = np.empty((*words.shape, 4), np.dtype("<u4"))
        for i in range(4):
            out[:, :, i] = (words >> np.uint32(2 * i)) & np.uint32(0x03030303)
        fields = out.reshape(len(words), -1).view(np.uint8)
        return (fields - np.uint8(1)).view(np.int8)

    def _check_words(self, blocks: Words, shape: Shape) -> None:
        for tile, words in enumerate(blocks):
            # Both bits of a field set.
            bad = words & (words >> np.uint32(1)) & np.uint32(0x55555555)
            if bad.any():
                row = tile * 16 + int(np.argwhere(bad)[0][1])
                raise self._error("ternary field", "0, 1 or 2", f"3 in row {row}", row=row)

    def _check_codes(self, codes: Codes, scales: Scales, shape: Shape) -> tuple[Codes, Scales]:
        if codes.shape != shape or codes.dtype != np.int8:
            raise self._error("codes", f"int8 {shape}", f"{codes.dtype} {codes.shape}")
        low, high = int(codes.min()), int(codes.max())
        if low < -1 or high > 1:
            raise self._error("code", "-1, 0 or 1", low if low < -1 else high)
        if scales.shape not in ((), (1,), shape[:1]) or scales.dtype != np.float32:
            expected = f"float32 () or {shape[:1]}"
            raise self._error("scales", expected, f"{scales.dtype} {scales.shape}")
        if not np.isfinite(scales).all():
            raise self._error("scales", "finite", "a scale that is not")
        return codes, scales


FORMAT = TernaryFormat(
    name="ternary",
    family="ternary",
    weight_bits=2,
    group_size=0,
    column_unit=16,
    source="Ma et al. 2024, The Era of 1-bit LLMs",
    block_columns=16,
)
