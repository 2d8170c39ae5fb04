"""int8: 8-bit integers, one float32 scale per row; 8 bits per weight and 4 bytes per row.

Tile (16 rows, Kp = K padded to 32; little-endian), a multiple of 64 bytes:

    Kp / 4 blocks of 64 bytes: byte 4r + t of block b is the int8 code of column 4b + t
    f32 scale[16]                                                     w = scale[r] * code

Codes are -127..127: -128 is never written, so that kernels may negate a code.

Quantizer: scale = max|w in row| / 127; code = round_half_even(w / scale).
Bound: abs error <= max|w in row| * (1 / 254) * (1 + 2**-15); the factor covers float32 rounding.
Source: Jacob et al. 2018, section 2.1, with the zero point fixed at 0 and one scale per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qh_runtime.formats.base import Codes, Scales, Shape
from qh_runtime.formats.families.tiled import RowScales, TiledFormat, Words, pad_codes

__all__ = ["FORMAT"]


@dataclass(frozen=True)
class Int8Format(RowScales, TiledFormat):
    """8-bit integers with row scales: codes int8 (N, K), scales float32 (N,)."""

    def quantize(self, weights: NDArray[np.float32]) -> tuple[Codes, Scales]:
        self.check_weights(weights)
        largest = np.maximum(weights.max(axis=1), -weights.min(axis=1))
        if not np.isfinite(largest).all():
            row = int(np.argmin(np.isfinite(largest)))
            raise self._error("weights", "finite", f"{largest[row]} in row {row}", row=row)
        scales = np.asarray(largest / np.float32(127), np.float32)
        # Rows of zeros, and rows so small that 1 / scale overflows, become zeros.
        safe = scales > np.float32(1e-37)
        scales = np.where(safe, scales, np.float32(0))
        inverse = np.divide(1, scales, out=np.zeros_like(scales), where=safe)
        q = weights * inverse[:, None]
        np.rint(q, out=q)
        np.clip(q, -127, 127, out=q)
        return q.astype(np.int8), scales

    def dequantize(self, codes: Codes, scales: Scales) -> NDArray[np.float32]:
        return np.asarray(codes.astype(np.float32) * scales[:, None], np.float32)

    def error_bound(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        largest = np.abs(weights).max(axis=1, keepdims=True)
        bound = largest * np.float32((1 + 2**-15) / 254) + np.float32(1.3e-35)
        return np.asarray(bound, np.float32)

    def _words(self, codes: Codes, padded: Shape) -> Words:
        return pad_codes(codes, padded, 0).view(np.dtype("<u4"))

    def _codes(self, words: Words) -> Codes:
        return words.view(np.int8)

    def _check_words(self, blocks: Words, shape: Shape) -> None:
        lowest = min((int(tile.view(np.int8).min()) for tile in blocks), default=0)
        if lowest < -127:
            raise self._error("code", "-127..127", lowest)

    def _check_codes(self, codes: Codes, scales: Scales, shape: Shape) -> tuple[Codes, Scales]:
        if codes.shape != shape or codes.dtype != np.int8:
            raise self._error("codes", f"int8 {shape}", f"{codes.dtype} {codes.shape}")
        if int(codes.min()) < -127:
            raise self._error("code", "-127..127", int(codes.min()))
        if scales.shape != shape[:1] or scales.dtype != np.float32:
            raise self._error("scales", f"float32 {shape[:1]}", f"{scales.dtype} {scales.shape}")
        if not np.isfinite(scales).all():
            raise self._error("scales", "finite", "a scale that is not")
        return codes, scales


FORMAT = Int8Format(
    name="int8",
    family="int8",
    weight_bits=8,
    group_size=0,
    column_unit=32,
    source="Jacob et al. 2018, section 2.1",
    block_columns=4,
)
