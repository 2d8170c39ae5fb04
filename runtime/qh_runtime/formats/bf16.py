"""bf16: the upper 16 bits of binary32, little-endian, row-major, N * K elements as uint16.

Bound: abs error <= |w| * 2**-8 (8 bits of significand, rounded half to even), or 2**-134 below the
smallest normal value. What would round to infinity is refused.
Source: the bfloat16 definition of Intel's white paper 338302-001, 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qh_runtime.formats.base import Codes
from qh_runtime.formats.families.dense import DenseFormat

__all__ = ["FORMAT", "bf16_to_f32", "f32_to_bf16"]


def f32_to_bf16(weights: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return float32 rounded to bfloat16, half to even, as uint16; NaN stays a quiet NaN."""
    bits = np.ascontiguousarray(weights, np.float32).view(np.uint32)
    # Adding 0x7FFF, and 1 more where the kept part is odd, carries exactly when rounding goes up.
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    out = (rounded >> np.uint32(16)).astype(np.uint16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    if nan.any():
        out[nan] = ((bits[nan] >> np.uint32(16)) | np.uint32(0x40)).astype(np.uint16)
    return out


def bf16_to_f32(elements: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return bfloat16 elements (as uint16) as float32, exactly."""
    bits = elements.astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


@dataclass(frozen=True)
class Bf16Format(DenseFormat):
    """bfloat16 elements as uint16."""

    def encode(self, weights: NDArray[np.float32]) -> Codes:
        return f32_to_bf16(weights)

    def decode(self, elements: Codes) -> NDArray[np.float32]:
        return bf16_to_f32(elements)


FORMAT = Bf16Format(
    name="bf16",
    family="dense",
    weight_bits=16,
    group_size=0,
    column_unit=1,
    source="Intel white paper 338302-001, 2018",
    storage="<u2",
    relative_error=2**-8,
    absolute_error=2**-134,
    # 2**128 - 2**119 and above rounds to infinity; the largest bfloat16 is 2**128 - 2**120.
    largest=float(np.uint32(0x7F7F7FFF).view(np.float32)),
)
