"""f32: IEEE 754 binary32, little-endian, row-major, N * K elements. Exact.

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
class F32Format(DenseFormat):
    """float32 elements."""

    def encode(self, weights: NDArray[np.float32]) -> Codes:
        return weights.astype(self.dtype)

    def decode(self, elements: Codes) -> NDArray[np.float32]:
        return elements.astype(np.float32)


FORMAT = F32Format(
    name="f32",
    family="dense",
    weight_bits=32,
    group_size=0,
    column_unit=1,
    source="IEEE 754-2019, binary32",
    storage="<f4",
    relative_error=0.0,
    absolute_error=0.0,
    largest=float(np.finfo(np.float32).max),
)
