"""The kernels' arithmetic in NumPy, written from its definition and not from the C++ code.

float32 throughout, one rounding for each operation, in the stated order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qh_kernels.cpu import QuantizedTokens

F32 = NDArray[np.float32]
GROUP = 32
PAD = 128


def padded(x: F32) -> F32:
    """x (n_tokens, cols) with zeros to a multiple of 128 columns."""
    return np.pad(x, ((0, 0), (0, -x.shape[1] % PAD)))


def quantize_token(x: F32) -> QuantizedTokens:
    """One scale per token; non-finite rows get codes 0 and scale NaN."""
    largest = np.abs(x).max(axis=1, keepdims=True)
    finite = np.isfinite(x).all(axis=1, keepdims=True)
    a = np.float32(127) / np.maximum(largest, np.float32(1e-5))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        codes = np.clip(np.rint(padded(x) * a), -128, 127)
        scales = np.where(finite, np.float32(1) / a, np.float32(np.nan))
    codes = np.where(finite, codes, 0).astype(np.int8)
    return QuantizedTokens(codes, scales, codes.sum(axis=1, keepdims=True, dtype=np.int32))


def group_sums(codes: NDArray[np.int8]) -> NDArray[np.int32]:
    """Sums of each 32 codes and of the first 16 of them, in turn."""
    halves = codes.reshape(len(codes), -1, 2, GROUP // 2).sum(axis=3, dtype=np.int32)
    return np.stack([halves.sum(axis=2, dtype=np.int32), halves[:, :, 0]], axis=2).reshape(
        len(codes), -1
    )


def quantize_groups(x: F32) -> QuantizedTokens:
    """One scale per 32 columns; non-finite groups get codes 0 and scale NaN."""
    groups = padded(x).reshape(x.shape[0], -1, GROUP)
    finite = np.isfinite(groups).all(axis=2)
    scales = np.abs(groups).max(axis=2) / np.float32(127)
    usable = finite & (scales > 0)
    divisor = np.where(usable, scales, np.float32(1))[..., None]
    with np.errstate(invalid="ignore", over="ignore"):
        codes = np.clip(np.rint(groups / divisor), -127, 127)
    codes = np.where(usable[..., None], codes, 0).astype(np.int8)
    return QuantizedTokens(
        codes.reshape(x.shape[0], -1),
        np.where(finite, scales, np.float32(np.nan)),
        group_sums(codes.reshape(x.shape[0], -1)),
    )


def ternary_product(codes: NDArray[Any], row_scales: F32, x: QuantizedTokens) -> F32:
    """y = ((float)acc * x_scale) * row_scale; (n_tokens, rows)."""
    acc = x.codes[:, : codes.shape[1]].astype(np.int64) @ codes.T.astype(np.int64)
    return (acc.astype(np.float32) * x.scales) * row_scales.reshape(1, -1)


# 4-bit format: the integers of its codes, and the float32 that products are multiplied by.
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
_NF4 = (-112, -78, -59, -44, -32, -21, -10, 0, 9, 18, 28, 38, 49, 63, 81, 112)
LUT4 = {
    "int4_g32": (tuple(range(-8, 8)), 1.0),
    "int4_g128": (tuple(range(-8, 8)), 1.0),
    "nf4": (_NF4, 1 / 112),
    "mxfp4": (_E2M1, 0.5),
    "nvfp4": (_E2M1, 128.0),
}


def lut4_product(
    name: str, codes: NDArray[Any], scales: NDArray[Any], group: int, x: QuantizedTokens
) -> F32:
    """4-bit formats; codes are 0..15 (rows, cols).

    The product of the integers, times step. nvfp4: scales (rows, 1 + groups) begin with the row's
    scale, and those of groups are read as 2**-8 of their value; y = y * (row_scale * step).
    """
    integers, step = LUT4[name]
    signed = np.asarray(integers)[codes]
    factor: F32 | np.float32 = np.float32(step)
    if name == "nvfp4":
        factor = scales[:, :1].T * factor
        scales = scales[:, 1:] * np.float32(2**-8)
    product = small_groups_product if group < GROUP else grouped_product
    return product(signed, scales, group, x) * factor


def small_groups_product(
    codes: NDArray[Any], scales: NDArray[Any], group: int, x: QuantizedTokens
) -> F32:
    """For each 32 inputs: s = 0; per weight group s = s + scale * (float)acc; y += x_scale * s."""
    rows, cols = codes.shape
    weights = np.pad(codes, ((0, 0), (0, -cols % GROUP))).astype(np.int64)
    by_group = np.pad(scales, ((0, 0), (0, weights.shape[1] // group - scales.shape[1])))
    y = np.zeros((x.codes.shape[0], rows), np.float32)
    for begin in range(0, weights.shape[1], GROUP):
        s = np.zeros_like(y)
        for k in range(begin, begin + GROUP, group):
            acc = x.codes[:, k : k + group].astype(np.int64) @ weights[:, k : k + group].T
            s = s + by_group[:, k // group][None, :] * acc.astype(np.float32)
        y = y + x.scales[:, begin // GROUP][:, None] * s
    return y


def grouped_product(
    codes: NDArray[Any], scales: NDArray[Any], group: int, x: QuantizedTokens
) -> F32:
    """int8 (group 0: one float32 scale per row) and 4-bit formats with groups of 32 or more.

    Codes are signed integers (rows, cols). s = 0; for each 32 inputs: s = s + x_scale * (float)acc.
    int8: y = s * row_scale. 4 bits: s starts anew in each weight group and y = y + group_scale * s.
    """
    rows, cols = codes.shape
    unit = group or GROUP
    weights = np.pad(codes, ((0, 0), (0, -cols % unit))).astype(np.int64)
    y = np.zeros((x.codes.shape[0], rows), np.float32)
    s = np.zeros_like(y)
    for g in range(weights.shape[1] // GROUP):
        inputs = x.codes[:, g * GROUP : (g + 1) * GROUP].astype(np.int64)
        acc = inputs @ weights[:, g * GROUP : (g + 1) * GROUP].T
        s = s + x.scales[:, g : g + 1] * acc.astype(np.float32)
        if group and (g + 1) * GROUP % group == 0:
            column = scales[:, ((g + 1) * GROUP - 1) // group].astype(np.float32)
            y = y + column[None, :] * s
            s = np.zeros_like(y)
    return y if group else s * scales.reshape(1, -1).astype(np.float32)
