"""mxfp4: 4-bit floats (E2M1), one power of two per 32 inputs; 4.25 bits per weight.

Tile (16 rows, Kp = K padded to 32; little-endian), a multiple of 64 bytes:

    for every 128 columns, at the end up to 128: u8 exponent[4][16], zero where there is no group,
    then 4 blocks of 64 bytes per group: byte 4r + t of block b is
        q of column 8b + t  |  q of column 8b + 4 + t << 4
                                             w = 2**(exponent[r, k // 32] - 127) * e2m1[q]

The exponent is the E8M0 byte of the published format and is held as it is: 2**-127 (byte 0) to
2**125 (byte 252), far beyond float16. Refused are 253 and 254, because 6 * 2**126 is no float32,
and 255, which is NaN. The decoder flushes weights below 2**-126 to zero, as all such numbers.

Quantizer: exponent = floor(log2(max|w in group|)) - 2 + 127, at least 0; q = nearest code of
w / 2**(exponent - 127), ties to the even code, beyond 6 is 6.
Bound: abs error <= max|w in group| / 4 + 2**-128: the largest magnitude is 4 to 8 steps of the
scale, and both the gap from 4 to 6 and the clipping of up to 8 to 6 are within a quarter of it.
Products with int8 activations are exact: twice a value is an integer.
Source: Open Compute Project 2023, Microscaling Formats (MX) Specification 1.0, section 6.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qh_runtime.formats.base import Codes, Scales, Shape
from qh_runtime.formats.families import e2m1
from qh_runtime.formats.families.lut4 import Lut4Format

__all__ = ["FORMAT"]

_LARGEST_BYTE = 252
_SMALLEST_BITS = np.uint32(0x00400000)  # 2**-127, a subnormal float32


@dataclass(frozen=True)
class Mxfp4Format(Lut4Format):
    """Codes uint8 (N, K), scales float32 (N, groups of 32): powers of two."""

    scale_type = "u1"

    def quantize(self, weights: NDArray[np.float32]) -> tuple[Codes, Scales]:
        self.check_weights(weights)
        grouped = self.grouped(weights)
        largest = np.abs(grouped).max(axis=2)
        if not np.isfinite(largest).all():
            raise self._error("weights", "finite", float(largest.max()))
        # frexp's mantissa is in 0.5..1, so floor(log2) is one less than its exponent; 0 has 0.
        exponent = np.frexp(largest)[1] - 3
        exponent = np.where(largest == 0, -127, np.maximum(exponent, -127))
        codes = e2m1.nearest(grouped * np.ldexp(np.float32(1), -exponent)[:, :, None])
        codes = codes.reshape(len(weights), -1)
        scales = np.ldexp(np.float32(1), exponent).astype(np.float32)
        return np.ascontiguousarray(codes[:, : weights.shape[1]]), scales

    def error_bound(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        largest = np.abs(self.grouped(weights)).max(axis=2)
        return self.spread_bound(largest / np.float32(4) + np.float32(2**-128), weights.shape[1])

    def group_scales(self, scales: Scales) -> NDArray[np.float32]:
        return np.asarray(scales, np.float32)

    def _put_scales(self, scales: Scales, section: NDArray[np.uint8], shape: Shape) -> None:
        self._put_groups(_exponents(scales), section, shape)

    def _get_scales(self, section: NDArray[np.uint8], shape: Shape) -> Scales:
        return _powers(self._get_groups(section, shape))

    def _check_bytes(self, buffer: NDArray[np.uint8], shape: Shape) -> None:
        super()._check_bytes(buffer, shape)
        section = self._scale_section(buffer, shape)
        self._check_exponents(self._get_groups(section, shape))

    def _checked_scales(self, scales: Scales, shape: Shape) -> Scales:
        expected = (shape[0], self.groups(shape[1]))
        if scales.shape != expected or scales.dtype != np.float32:
            raise self._error("scales", f"float32 {expected}", f"{scales.dtype} {scales.shape}")
        exponents = _exponents(scales)
        other = _powers(exponents) != scales  # True for NaN
        if other.any():
            raise self._error("scale", "a power of two from 2**-127", float(scales[other][0]))
        self._check_exponents(exponents)
        return scales

    def _check_exponents(self, exponents: NDArray[np.uint8]) -> None:
        if int(exponents.max()) > _LARGEST_BYTE:
            row = int(np.argwhere(exponents > _LARGEST_BYTE)[0][0])
            raise self._error(
                "scale", f"at most 2**{_LARGEST_BYTE - 127}", f"more in row {row}", row=row
            )


def _exponents(scales: NDArray[np.float32]) -> NDArray[np.uint8]:
    bits = np.ascontiguousarray(scales).view(np.uint32)
    return (bits >> np.uint32(23)).astype(np.uint8)


def _powers(exponents: NDArray[np.uint8]) -> NDArray[np.float32]:
    bits = np.maximum(exponents.astype(np.uint32) << np.uint32(23), _SMALLEST_BITS)
    return np.asarray(bits.view(np.float32))


FORMAT = Mxfp4Format(
    name="mxfp4",
    family="lut4",
    weight_bits=4,
    group_size=32,
    column_unit=32,
    source="Open Compute Project 2023, Microscaling Formats (MX) Specification 1.0",
    block_columns=8,
    table=e2m1.VALUES,
    integers=e2m1.INTEGERS,
    step=e2m1.STEP,
    zero_code=0,
)
