"""int4_g32: 4-bit integers, one float16 scale per 32 inputs; 4.5 bits per weight.

Tile (16 rows, Kp = K padded to 32; little-endian), a multiple of 64 bytes:

    for every 64 columns: f16 scale[2][16], zero where there is no second group, then
    8 blocks of 64 bytes (4 without a second group): byte 4r + t of block b is
        q of column 8b + t  |  q of column 8b + 4 + t << 4         w = scale[r, k // 32] * (q - 8)

Quantizer: m = the weight of largest magnitude in the group, with its sign; scale = f16(m / -8);
q = clip(round_half_even(w / scale) + 8, 0, 15). m itself becomes code 0 and is exact up to the
rounding of the scale; weights of the other sign near -m lie one step beyond code 15: clipped.

Bound: abs error <= max|w in group| / 8 * (1 + 2**-8) * (1 + 2**-11) + 9 * 2**-25; the first
factor is the clipped step, the others the rounding of the scale (the last: a subnormal scale).
Source: Gerganov 2023, ggml Q4_0 (the signed-maximum rule); deviations: none in values, own layout.
"""

from __future__ import annotations

from qh_runtime.formats.families.lut4 import int4

FORMAT = int4(group_size=32)
