"""f16: IEEE 754 binary16, little-endian, row-major, N * K elements.

Bound: abs error <= |w| * 2**-11, or 2**-25 where |w| < 2**-14 (subnormal); above 65504: refused.
Source: IEEE 754-2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qh_runtime.formats.base import Codes
from qh_runtime.formats.families.dense import DenseFormat

__all__ = ["FORMAT"]


@dataclass(frozen=True)
class F16Format(DenseFormat):
    """float16 elements."""

    def encode(self, weights: NDArray[np.float32]) -> Codes:
        return weights.astype(self.dtype)

    def decode(self, elements: Codes) -> NDArray[np.float32]:
        return elements.astype(np.float32)


FORMAT = F16Format(
    name="f16",
    family="dense",
    weight_bits=16,
    group_size=0,
    column_unit=1,
    source="IEEE 754-2019, binary16",
    storage="<f2",
    relative_error=2**-11,
    absolute_error=2**-25,
    largest=65504.0,
)
