"""lut4: 4-bit codes into a table of 16 values, times a group scale. First member: int4.

Tile: f16 group scales [Kp / G][16], zero-padded at the end to a multiple of 64 bytes, then blocks
of 8 columns; byte 4r + t of block b holds column 8b + t (low nibble) and 8b + 4 + t (high nibble).
A further format of this family gives its table, its quantizer and its group size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qh_runtime.formats.base import BLOCK_BYTES, TILE_ROWS, Codes, Scales, Shape
from qh_runtime.formats.families.tiled import TiledFormat, Words, pad_codes

__all__ = ["Int4Format", "Lut4Format"]


@dataclass(frozen=True)
class Lut4Format(TiledFormat):
    """w = scale[r, k // group_size] * table[q]; q = 0..15, scales f16 (N, ceil(K / G)).

    Attributes:
        table: the 16 values.
        zero_code: a code whose table value is 0; padding holds it.
    """

    table: tuple[float, ...]
    zero_code: int

    def groups(self, columns: int) -> int:
        """Scales per row of a matrix with this many columns (unpadded)."""
        return -(-columns // self.group_size)

    def scale_bytes(self, padded_columns: int) -> int:
        size = padded_columns // self.group_size * TILE_ROWS * 2
        return -(-size // BLOCK_BYTES) * BLOCK_BYTES

    def dequantize(self, codes: Codes, scales: Scales) -> NDArray[np.float32]:
        values = np.asarray(self.table, np.float32)[codes]
        spread = np.repeat(scales.astype(np.float32), self.group_size, axis=1)
        return np.asarray(values * spread[:, : codes.shape[1]], np.float32)

    def _words(self, codes: Codes, padded: Shape) -> Words:
        words = pad_codes(codes, padded, self.zero_code).view(np.dtype("<u4"))
        pairs = words.reshape(padded[0], -1, 2)
        # A byte is at most 15, so the shift by 4 never leaves its byte.
        high = pairs[:, :, 1] << np.uint32(4)
        high |= pairs[:, :, 0]
        return high

    def _codes(self, words: Words) -> Codes:
        out = np.empty((*words.shape, 2), np.dtype("<u4"))
        out[:, :, 0] = words & np.uint32(0x0F0F0F0F)
        out[:, :, 1] = (words >> np.uint32(4)) & np.uint32(0x0F0F0F0F)
        return out.reshape(len(words), -1).view(np.uint8)

    def _put_scales(self, scales: Scales, section: NDArray[np.uint8], shape: Shape) -> None:
        tiles, groups = len(section), scales.shape[1]
        padded_groups = self.padded_shape(shape)[1] // self.group_size
        grid = np.zeros((tiles * TILE_ROWS, padded_groups), np.dtype("<f2"))
        grid[: shape[0], :groups] = scales
        order = grid.reshape(tiles, TILE_ROWS, padded_groups).transpose(0, 2, 1)
        flat = np.ascontiguousarray(order).view(np.uint8).reshape(tiles, -1)
        section[:, : flat.shape[1]] = flat

    def _get_scales(self, section: NDArray[np.uint8], shape: Shape) -> Scales:
        padded_groups = self.padded_shape(shape)[1] // self.group_size
        flat = np.ascontiguousarray(section[:, : padded_groups * TILE_ROWS * 2])
        grid = flat.view(np.dtype("<f2")).reshape(-1, padded_groups, TILE_ROWS).transpose(0, 2, 1)
        rows = grid.reshape(-1, padded_groups)
        return rows[: shape[0], : self.groups(shape[1])].astype(np.float16)

    def _check_words(self, blocks: Words, shape: Shape) -> None:
        # All 16 codes of both nibbles have a value.
        return

    def _check_codes(self, codes: Codes, scales: Scales, shape: Shape) -> tuple[Codes, Scales]:
        if codes.shape != shape or codes.dtype != np.uint8:
            raise self._error("codes", f"uint8 {shape}", f"{codes.dtype} {codes.shape}")
        if int(codes.max()) > 15:
            raise self._error("code", "0..15", int(codes.max()))
        expected = (shape[0], self.groups(shape[1]))
        if scales.shape != expected or scales.dtype != np.float16:
            raise self._error("scales", f"float16 {expected}", f"{scales.dtype} {scales.shape}")
        if not np.isfinite(scales).all():
            raise self._error("scales", "finite", "a scale that is not")
        return codes, scales


@dataclass(frozen=True)
class Int4Format(Lut4Format):
    """int4: table value q - 8; see int4_g32.py for the quantizer and the error bound."""

    def quantize(self, weights: NDArray[np.float32]) -> tuple[Codes, Scales]:
        self.check_weights(weights)
        rows, cols = weights.shape
        groups = self.groups(cols)
        if cols == groups * self.group_size:
            grouped = weights.reshape(rows, groups, self.group_size)
        else:
            padded = np.zeros((rows, groups * self.group_size), np.float32)
            padded[:, :cols] = weights
            grouped = padded.reshape(rows, groups, self.group_size)
        signed = _largest_magnitude(grouped)
        worst = float(np.abs(signed).max())
        if not worst <= 8 * 65504.0:  # NaN fails this too: max and min propagate it
            raise self._error("weights", f"finite and at most {8 * 65504.0:g}", worst)
        scales = (signed * np.float32(-1 / 8)).astype(np.float16)
        steps = scales.astype(np.float32)
        # A group of zeros (or too small for f16) has scale 0: every code becomes 8, weight 0.
        inverse = np.divide(1, steps, out=np.zeros_like(steps), where=steps != 0)
        q = grouped * inverse[:, :, None]
        np.rint(q, out=q)
        q += 8
        np.clip(q, 0, 15, out=q)
        codes = q.astype(np.uint8).reshape(rows, -1)
        return np.ascontiguousarray(codes[:, :cols]), scales

    def error_bound(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        rows, cols = weights.shape
        padded = np.zeros((rows, self.groups(cols) * self.group_size), np.float32)
        padded[:, :cols] = np.abs(weights)
        largest = padded.reshape(rows, -1, self.group_size).max(axis=2)
        bound = largest * np.float32((1 + 2**-8) * (1 + 2**-11) / 8) + np.float32(9 * 2**-25)
        return np.asarray(np.repeat(bound, self.group_size, axis=1)[:, :cols], np.float32)


def _largest_magnitude(grouped: NDArray[np.float32]) -> NDArray[np.float32]:
    """The value of largest magnitude along the last axis, with its sign; a NaN wins.

    Moving the sign to the lowest bit orders float32 by magnitude, so one reduction finds it; of
    +m and -m it takes -m.
    """
    bits = grouped.view(np.uint32)
    ordered = bits << np.uint32(1)
    ordered |= bits >> np.uint32(31)
    top = ordered.max(axis=-1)
    signed: NDArray[np.float32] = ((top >> np.uint32(1)) | (top << np.uint32(31))).view(np.float32)
    return signed


def int4(group_size: int) -> Int4Format:
    """The int4 format with this group size, a multiple of 32."""
    return Int4Format(
        name=f"int4_g{group_size}",
        family="lut4",
        weight_bits=4,
        group_size=group_size,
        column_unit=group_size,
        source="Gerganov 2023, ggml Q4_0: the largest magnitude of a group maps to -8",
        block_columns=8,
        scales_first=True,
        table=tuple(float(q - 8) for q in range(16)),
        zero_code=8,
    )
