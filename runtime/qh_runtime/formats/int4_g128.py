"""int4_g128: 4-bit integers, one float16 scale per 128 inputs; 4.125 bits per weight.

Layout, quantizer and bound are those of int4_g32 with 128 in place of 32: K is padded to 128 and a
tile holds f16 scale[Kp / 128][16], zero-padded to a multiple of 64 bytes, then the blocks.
Source: Gerganov 2023, ggml Q4_0 (the signed-maximum rule); group size: Frantar et al. 2022 (GPTQ).
"""

from __future__ import annotations

from qh_runtime.formats.families.lut4 import int4

FORMAT = int4(group_size=128)
