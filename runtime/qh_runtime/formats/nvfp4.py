"""nvfp4: 4-bit floats (E2M1), an 8-bit float per 16 inputs, a float32 per row; 4.5 bits per weight.

Tile (16 rows, Kp = K padded to 32; little-endian), a multiple of 64 bytes:

    for every 64 columns, at the end 32 or 64: u8 scale[4][16], E4M3 without sign, 0 to 448, zero
    where there is no group, then 2 blocks of 64 bytes per group: byte 4r + t of block b is
        q of column 8b + t  |  q of column 8b + 4 + t << 4
    f32 row_scale[16]               w = e2m1[q] * float32(e4m3(scale[r, k // 16]) * row_scale[r])

The published format has one float32 scale per tensor; it is stored once per row, so that layers
fused from tensors with different ones have the same form. Codes and both scales of a checkpoint are
held exactly. Bytes above 0x7E (NaN, negative) are refused; so are row scales that are negative, not
finite or above 2**128 / 2688, with which weights would be no float32.

Quantizer: row_scale = max|w in row| / (6 * 448), at least 2**-116; scale = the E4M3 nearest to
max|w in group| / (6 * row_scale), ties to even, within 2**-9..448; q = nearest code of
w / (scale * row_scale), ties to the even code, beyond 6 is 6. Rows are independent, which one scale
of the tensor would not allow; no group's error bound is larger for it.
Bound: abs error <= max|w in group| / 6 * (1 + 2**-4) * (1 + 2**-20) + row_scale * 2**-7: half of
the gap from 4 to 6, one rounding of the scale; the last where that is subnormal.
Products with int8 activations are exact up to float32 rounding: twice a value is an integer.
Source: NVIDIA 2025, Pretraining Large Language Models with NVFP4, section 2; E4M3: Micikevicius
et al. 2022, FP8 Formats for Deep Learning.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qh_runtime.formats.base import TILE_ROWS, Codes, Scales, Shape
from qh_runtime.formats.families import e2m1
from qh_runtime.formats.families.lut4 import Lut4Format

__all__ = ["FORMAT"]

_LARGEST_BYTE = 0x7E
_SMALLEST_ROW_SCALE = np.float32(2**-116)


def _e4m3_values() -> NDArray[np.float32]:
    """Values of all bytes; NaN for what is no scale."""
    values = np.full(256, np.nan, np.float32)
    for byte in range(_LARGEST_BYTE + 1):
        exponent, mantissa = byte >> 3, byte & 7
        values[byte] = (8 + mantissa) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0**-9
    return values


_E4M3 = _e4m3_values()
_LARGEST = e2m1.LARGEST * float(_E4M3[_LARGEST_BYTE])
# float32 division: one step below the next row scale, which would overflow.
_LARGEST_ROW_SCALE = np.finfo(np.float32).max / np.float32(_LARGEST)


def _nearest_e4m3(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Bytes of the nearest values; a tie takes the even byte, beyond 448 is 448."""
    known = _E4M3[: _LARGEST_BYTE + 1]
    middles = (known[:-1] + known[1:]) / np.float32(2)
    # A tie after an even byte stays: only what is above the middle goes on. Else the middle, too.
    middles[1::2] = np.nextafter(middles[1::2], np.float32(0))
    return np.searchsorted(middles, x, side="left").astype(np.uint8)


@dataclass(frozen=True)
class Nvfp4Format(Lut4Format):
    """Codes uint8 (N, K), scales float32 (N, 1 + groups of 16): the row's, then E4M3 values."""

    scale_type = "u1"

    def scale_lines(self, padded_columns: int) -> NDArray[np.intp]:
        of_groups = super().scale_lines(padded_columns)
        last = padded_columns // self.block_columns + len(of_groups)
        return np.append(of_groups, last)

    def quantize(self, weights: NDArray[np.float32]) -> tuple[Codes, Scales]:
        self.check_weights(weights)
        grouped = self.grouped(weights)
        largest = np.abs(grouped).max(axis=2)
        of_row = largest.max(axis=1, keepdims=True)
        if not np.isfinite(of_row).all():
            raise self._error("weights", "finite", float(of_row.max()))
        row_scales = np.maximum(of_row / np.float32(_LARGEST), _SMALLEST_ROW_SCALE)
        wanted = largest / (np.float32(e2m1.LARGEST) * row_scales)
        group_scales = _E4M3[np.maximum(_nearest_e4m3(wanted), 1)]
        codes = e2m1.nearest(grouped / (group_scales * row_scales)[:, :, None])
        codes = codes.reshape(len(weights), -1)
        scales = np.concatenate([row_scales, group_scales], axis=1).astype(np.float32)
        return np.ascontiguousarray(codes[:, : weights.shape[1]]), scales

    def error_bound(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        largest = np.abs(self.grouped(weights)).max(axis=2)
        of_row = largest.max(axis=1, keepdims=True)
        row_scales = np.maximum(of_row / np.float32(_LARGEST), _SMALLEST_ROW_SCALE)
        bound = largest * np.float32((1 + 2**-4) * (1 + 2**-20) / 6) + row_scales * np.float32(
            2**-7
        )
        return self.spread_bound(bound, weights.shape[1])

    def group_scales(self, scales: Scales) -> NDArray[np.float32]:
        return np.asarray(scales[:, 1:] * scales[:, :1], np.float32)

    def _sections_of(self, section: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], ...]:
        """(group scales, row scales) of the scale bytes of tiles."""
        split = section.shape[1] - TILE_ROWS * 4
        return section[:, :split], section[:, split:]

    def _put_scales(self, scales: Scales, section: NDArray[np.uint8], shape: Shape) -> None:
        of_groups, of_rows = self._sections_of(section)
        self._put_groups(_nearest_e4m3(scales[:, 1:]), of_groups, shape)
        rows = np.zeros(len(section) * TILE_ROWS, np.dtype("<f4"))
        rows[: shape[0]] = scales[:, 0]
        of_rows[...] = rows.view(np.uint8).reshape(of_rows.shape)

    def _get_scales(self, section: NDArray[np.uint8], shape: Shape) -> Scales:
        of_groups, of_rows = self._sections_of(section)
        rows = np.ascontiguousarray(of_rows).reshape(-1).view(np.dtype("<f4"))[: shape[0], None]
        groups = _E4M3[self._get_groups(of_groups, shape)]
        return np.concatenate([rows, groups], axis=1).astype(np.float32)

    def _check_bytes(self, buffer: NDArray[np.uint8], shape: Shape) -> None:
        super()._check_bytes(buffer, shape)
        self._check_row_scales(self._get_scales(self._scale_section(buffer, shape), shape)[:, 0])

    def _checked_scales(self, scales: Scales, shape: Shape) -> Scales:
        expected = (shape[0], 1 + self.groups(shape[1]))
        if scales.shape != expected or scales.dtype != np.float32:
            raise self._error("scales", f"float32 {expected}", f"{scales.dtype} {scales.shape}")
        groups = scales[:, 1:]
        known = np.isin(groups, _E4M3[: _LARGEST_BYTE + 1]) & ~np.signbit(groups)
        if not known.all():
            raise self._error(
                "group scale", "an E4M3 number from 0 to 448", float(groups[~known][0])
            )
        self._check_row_scales(scales[:, 0])
        return scales

    def _check_row_scales(self, row_scales: NDArray[np.float32]) -> None:
        good = (row_scales <= _LARGEST_ROW_SCALE) & ~np.signbit(row_scales)
        if not good.all():
            row = int(np.argmin(good))
            expected = f"0 to {_LARGEST_ROW_SCALE:g}"
            raise self._error("row scale", expected, float(row_scales[row]), row=row)


FORMAT = Nvfp4Format(
    name="nvfp4",
    family="lut4",
    weight_bits=4,
    group_size=16,
    column_unit=32,
    source="NVIDIA 2025, Pretraining Large Language Models with NVFP4",
    block_columns=8,
    table=e2m1.VALUES,
    integers=e2m1.INTEGERS,
    step=e2m1.STEP,
    zero_code=0,
)
