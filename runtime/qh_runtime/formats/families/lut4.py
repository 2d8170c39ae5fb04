"""lut4: 4-bit codes into a table of 16 values, times a group scale: int4, nf4, mxfp4, nvfp4.

Tile: spans, one after the other, and at the end, where a format has row scales, f32 [16]. A span is
64 bytes of scales [64 / (16 * width)][16] of its weight groups, and then their blocks of 8 columns:
byte 4r + t of block b holds column 8b + t (low nibble) and 8b + 4 + t (high nibble). The last span
ends with the last group; scales of groups that it has not are zero. So a thread reads one stream:
with all scales in front of all blocks, a product took 1.1 to 1.4 times as long (Zen 4, November
2026).
A further format of this family gives its table, its group size, how it holds scales, its quantizer.

Products with int8 activations work on integers: of each code an int8, and one step, such that
step * integer is the value (exactly, or as near as the format's docstring says). With float32
activations, and when weights are unpacked, values are the table's.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from qh_runtime.formats.base import BLOCK_BYTES, TILE_ROWS, Codes, Scales, Shape
from qh_runtime.formats.families.tiled import TiledFormat, Words, pad_codes

__all__ = ["HalfScales", "Int4Format", "Lut4Format", "largest_magnitude"]

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Lut4Format(TiledFormat):
    """w = group scale [r, k // group_size] * table[q]; q = 0..15.

    Attributes:
        table: the 16 values.
        integers: their integers in -127..127.
        step: table[q] is step * integers[q], at least nearly.
        zero_code: a code whose table value is 0; padding holds it.
    """

    table: tuple[float, ...]
    integers: tuple[int, ...]
    step: float
    zero_code: int

    # NumPy type of one stored group scale.
    scale_type: ClassVar[str]

    @abstractmethod
    def group_scales(self, scales: Scales) -> F32:
        """float32 (N, groups): what the table's values are multiplied by."""

    def groups(self, columns: int) -> int:
        """Group scales per row of a matrix with this many columns (unpadded)."""
        return -(-columns // self.group_size)

    def span_columns(self) -> int:
        """Columns whose group scales share a 64-byte line."""
        return BLOCK_BYTES // (TILE_ROWS * np.dtype(self.scale_type).itemsize) * self.group_size

    def scale_lines(self, padded_columns: int) -> NDArray[np.intp]:
        spans = -(-padded_columns // self.span_columns())
        return np.arange(spans) * (1 + self.span_columns() // self.block_columns)

    def dequantize(self, codes: Codes, scales: Scales) -> F32:
        values = np.asarray(self.table, np.float32)[codes]
        spread = np.repeat(self.group_scales(scales), self.group_size, axis=1)
        return np.asarray(values * spread[:, : codes.shape[1]], np.float32)

    def coded(self, codes: Codes, scales: Scales) -> tuple[NDArray[np.int8], F32]:
        integers = np.asarray(self.integers, np.int8)[codes]
        return integers, self.group_scales(scales) * np.float32(self.step)

    def factors(self, codes: Codes, scales: Scales) -> tuple[NDArray[np.int8] | F32, F32]:
        if all(self.step * i == x for i, x in zip(self.integers, self.table, strict=True)):
            return self.coded(codes, scales)
        return np.asarray(self.table, np.float32)[codes], self.group_scales(scales)

    def grouped(self, weights: F32) -> F32:
        """(N, groups, group_size), filled up with zeros at the end."""
        rows, cols = weights.shape
        groups = self.groups(cols)
        if cols != groups * self.group_size:
            padded = np.zeros((rows, groups * self.group_size), np.float32)
            padded[:, :cols] = weights
            weights = padded
        return weights.reshape(rows, groups, self.group_size)

    def spread_bound(self, by_group: F32, columns: int) -> F32:
        """A bound (N, groups) for each weight (N, columns)."""
        return np.asarray(np.repeat(by_group, self.group_size, axis=1)[:, :columns], np.float32)

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

    def _put_groups(self, stored: Scales, section: NDArray[np.uint8], shape: Shape) -> None:
        """Write stored group scales (N, groups) to the scale bytes of tiles, without row scales."""
        tiles, groups = len(section), stored.shape[1]
        padded_groups = self.padded_shape(shape)[1] // self.group_size
        grid = np.zeros((tiles * TILE_ROWS, padded_groups), np.dtype(self.scale_type))
        grid[: shape[0], :groups] = stored
        order = grid.reshape(tiles, TILE_ROWS, padded_groups).transpose(0, 2, 1)
        flat = np.ascontiguousarray(order).view(np.uint8).reshape(tiles, -1)
        section[:, : flat.shape[1]] = flat

    def _get_groups(self, section: NDArray[np.uint8], shape: Shape) -> Scales:
        """What `_put_groups` has written, (N, groups)."""
        padded_groups = self.padded_shape(shape)[1] // self.group_size
        kind = np.dtype(self.scale_type)
        flat = np.ascontiguousarray(section[:, : padded_groups * TILE_ROWS * kind.itemsize])
        grid = flat.view(kind).reshape(-1, padded_groups, TILE_ROWS).transpose(0, 2, 1)
        rows = grid.reshape(-1, padded_groups)
        return rows[: shape[0], : self.groups(shape[1])].astype(kind.newbyteorder("="))

    def _check_words(self, blocks: Words, shape: Shape) -> None:
        # All 16 codes of both nibbles have a value.
        return

    def _check_codes(self, codes: Codes, scales: Scales, shape: Shape) -> tuple[Codes, Scales]:
        if codes.shape != shape or codes.dtype != np.uint8:
            raise self._error("codes", f"uint8 {shape}", f"{codes.dtype} {codes.shape}")
        if int(codes.max()) > 15:
            raise self._error("code", "0..15", int(codes.max()))
        return codes, self._checked_scales(scales, shape)

    @abstractmethod
    def _checked_scales(self, scales: Scales, shape: Shape) -> Scales:
        """The scales, or FormatError unless they are what `quantize` may return."""


@dataclass(frozen=True)
class HalfScales(Lut4Format):
    """Scales float16 (N, groups), of any sign."""

    scale_type = "<f2"

    def group_scales(self, scales: Scales) -> F32:
        return np.asarray(scales, np.float32)

    def _put_scales(self, scales: Scales, section: NDArray[np.uint8], shape: Shape) -> None:
        self._put_groups(scales, section, shape)

    def _get_scales(self, section: NDArray[np.uint8], shape: Shape) -> Scales:
        return self._get_groups(section, shape)

    def _checked_scales(self, scales: Scales, shape: Shape) -> Scales:
        expected = (shape[0], self.groups(shape[1]))
        if scales.shape != expected or scales.dtype != np.float16:
            raise self._error("scales", f"float16 {expected}", f"{scales.dtype} {scales.shape}")
        if not np.isfinite(scales).all():
            raise self._error("scales", "finite", "a scale that is not")
        return scales


@dataclass(frozen=True)
class Int4Format(HalfScales):
    """int4: table value q - 8; see int4_g32.py for the quantizer and the error bound."""

    def quantize(self, weights: NDArray[np.float32]) -> tuple[Codes, Scales]:
        self.check_weights(weights)
        rows, cols = weights.shape
        grouped = self.grouped(weights)
        signed = largest_magnitude(grouped)
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
        largest = np.abs(self.grouped(weights)).max(axis=2)
        bound = largest * np.float32((1 + 2**-8) * (1 + 2**-11) / 8) + np.float32(9 * 2**-25)
        return self.spread_bound(bound, weights.shape[1])


def largest_magnitude(grouped: NDArray[np.float32]) -> NDArray[np.float32]:
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
        table=tuple(float(q - 8) for q in range(16)),
        integers=tuple(range(-8, 8)),
        step=1.0,
        zero_code=8,
    )
