"""nf4: 4-bit codes of normal quantiles, a float16 scale per 64 inputs; 4.25 bits per weight.

Tile (16 rows, Kp = K padded to 64; little-endian), a multiple of 64 bytes:

    for every 128 columns: f16 scale[2][16], zero where there is no second group, then
    16 blocks of 64 bytes (8 without a second group): byte 4r + t of block b is
        q of column 8b + t  |  q of column 8b + 4 + t << 4       w = scale[r, k // 64] * table[q]

Quantizer: scale = f16(max|w in group|); q = the code whose value is nearest to w / scale, the lower
one of two equally near.
Bound: abs error <= max|w in group| * (0.15191 * (1 + 2**-11) + 2**-11) + 2**-24: half of the widest
gap of the table (-1 to -0.696), and the rounding of the scale.

Products with int8 activations have integer[q] / 112 in place of table[q]: of all multipliers up to
127, the one with the smallest mean square error over the 16 values for which -1 and 1 are exact.
Off by at most 0.0039 of the scale (root mean square 0.0017, a 23rd of half the smallest gap) and
1.94 % of a value (at -0.0911); unpacking and products with float32 activations use the table.

Source: Dettmers et al. 2023, QLoRA, appendix E; scales as bitsandbytes without double quantization,
but rounded to float16, and groups end with a row where K is no multiple of 64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qh_runtime.formats.base import Codes, Scales
from qh_runtime.formats.families.lut4 import HalfScales

__all__ = ["FORMAT"]

_TABLE = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_MULTIPLIER = 112
_LARGEST_SCALE = 65504.0


@dataclass(frozen=True)
class Nf4Format(HalfScales):
    """Codes uint8 (N, K), scales float16 (N, groups of 64)."""

    def quantize(self, weights: NDArray[np.float32]) -> tuple[Codes, Scales]:
        self.check_weights(weights)
        grouped = self.grouped(weights)
        largest = np.abs(grouped).max(axis=2)
        worst = float(largest.max())
        if not worst <= _LARGEST_SCALE:  # NaN fails this too
            raise self._error("weights", f"finite and at most {_LARGEST_SCALE:g}", worst)
        scales = largest.astype(np.float16)
        steps = scales.astype(np.float32)
        # A group of zeros (or too small for f16) has scale 0: every code is that of 0.
        inverse = np.divide(1, steps, out=np.zeros_like(steps), where=steps != 0)
        x = grouped * inverse[:, :, None]
        table = np.asarray(_TABLE, np.float32)
        codes = np.zeros(x.shape, np.uint8)
        for middle in (table[:-1] + table[1:]) / np.float32(2):
            codes += x > middle
        codes = codes.reshape(len(weights), -1)
        return np.ascontiguousarray(codes[:, : weights.shape[1]]), scales

    def error_bound(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        largest = np.abs(self.grouped(weights)).max(axis=2)
        bound = largest * np.float32(0.15191 * (1 + 2**-11) + 2**-11) + np.float32(2**-24)
        return self.spread_bound(bound, weights.shape[1])


FORMAT = Nf4Format(
    name="nf4",
    family="lut4",
    weight_bits=4,
    group_size=64,
    column_unit=64,
    source="Dettmers et al. 2023, QLoRA, appendix E",
    block_columns=8,
    table=_TABLE,
    integers=tuple(round(_MULTIPLIER * x) for x in _TABLE),
    step=1 / _MULTIPLIER,
    zero_code=7,
)
