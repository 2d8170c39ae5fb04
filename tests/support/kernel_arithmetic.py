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


def grouped_product(
    codes: NDArray[Any], scales: NDArray[Any], group: int, x: QuantizedTokens
) -> F32:
    """int8 (group 0: one float32 scale per row) and int4; codes are signed integers (rows, cols).

    s = 0; for each 32 inputs: s = s + x_scale * (float)acc. int8: y = s * row_scale. int4: s starts
    anew in each weight group and y = y + group_scale * s.
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
