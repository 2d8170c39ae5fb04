"""E2M1: the 4-bit floats of MXFP4 and NVFP4.

Code bits: sign, two of exponent, one of mantissa. Codes 0..7 are 0, 0.5, 1, 1.5, 2, 3, 4, 6; codes
8..15 are the same negated, so that code 8 is a second zero: read, never written. No infinity, no
NaN. Twice a value is an integer: products with int8 activations are exact.
Source: Open Compute Project 2023, Microscaling Formats (MX) Specification 1.0, table 3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["INTEGERS", "LARGEST", "STEP", "VALUES", "nearest"]

STEP = 0.5
INTEGERS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
VALUES = tuple(STEP * x for x in INTEGERS)
LARGEST = VALUES[7]


def nearest(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Codes of the nearest values; a tie takes the even code, beyond 6 is 6."""
    size = np.abs(x)
    codes = np.zeros(x.shape, np.uint8)
    for code in range(7):
        middle = np.float32((VALUES[code] + VALUES[code + 1]) / 2)
        # A tie between an even code and the next one stays, one after an odd code goes on.
        codes += size > middle if code % 2 == 0 else size >= middle
    negative = (x < 0) & (codes != 0)
    codes |= negative.astype(np.uint8) << np.uint8(3)
    return codes
