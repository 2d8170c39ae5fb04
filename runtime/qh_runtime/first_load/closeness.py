"""How far float32 results may be from exact ones, and the error of a result that is farther.

Bounds hold for any values: they follow from the number of roundings on the way, which the structure
of the kernels gives (Higham 2002, Accuracy and Stability of Numerical Algorithms, equation 3.5).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qh_kernels.kv_cache import KV_BLOCK, KvHead
from qh_runtime.errors import KernelError
from qh_runtime.reference import ops
from qh_runtime.reference.ops import QuantizedActivations
from qh_runtime.reference.weights import CodedMatrix, DenseMatrix, Matrix

__all__ = [
    "FLOAT32_ROUNDING",
    "UNDERFLOW",
    "WrongResultError",
    "attention_of_head",
    "product",
    "require_close",
    "wrong",
]

F64 = NDArray[np.float64]

# One float32 operation: at most this much of its result.
FLOAT32_ROUNDING = 2.0**-24
# The decoder flushes subnormal numbers to zero; far above what that can add up to.
UNDERFLOW = 1e-30
# Sums that run side by side in one float32 dot product: lanes in dense.h, halves in packed.h.
_DENSE_SUMS, _PACKED_SUMS = 16, 2
# Roundings besides those of the sum: the weight's scale, the last tree of lanes, the result.
_OTHER_ROUNDINGS = 8


class WrongResultError(KernelError):
    """Kernels computed something else than NumPy. Facts: object, isa, expected, found, bound."""


def require_close(
    what: str, isa: str, found: NDArray[Any], expected: NDArray[Any], bound: NDArray[Any] | float
) -> None:
    """Return normally if every found value is within its bound of the expected one.

    Raises:
        WrongResultError: one is not; facts name the worst.
    """
    wide, target = found.astype(np.float64), expected.astype(np.float64)
    if wide.shape != target.shape:
        raise wrong(what, isa, target.shape, wide.shape, 0.0)
    limit = np.broadcast_to(np.asarray(bound, np.float64) + UNDERFLOW, target.shape)
    difference = np.abs(wide - target)
    # Not "difference > limit": a NaN has to fail.
    if (difference <= limit).all():
        return
    ratio = difference / limit
    ratio[np.isnan(ratio)] = np.inf
    worst = np.unravel_index(int(ratio.argmax()), ratio.shape)
    raise wrong(what, isa, float(target[worst]), float(wide[worst]), float(limit[worst]))


def wrong(what: str, isa: str, expected: object, found: object, bound: float) -> WrongResultError:
    """The error of a wrong result; the caller raises it."""
    return WrongResultError(
        f"{what}: {isa}: expected {_text(expected)} within {bound:.2g}, found {_text(found)}",
        hint="run `qh-chat doctor`",
        object=what,
        isa=isa,
        expected=expected,
        found=found,
        bound=bound,
    )


def product(matrix: Matrix, x: NDArray[np.float32] | QuantizedActivations) -> tuple[F64, F64]:
    """W x of the reference in float64, and the largest error of the float32 kernels.

    Args:
        matrix: (rows, in_features).
        x: (n_tokens, in_features) where the matrix reads floats, else the codes that it reads.

    Returns:
        Both (n_tokens, rows).
    """
    if not isinstance(x, QuantizedActivations):
        values = matrix.values.astype(np.float64)
        inputs = x.astype(np.float64)
        expected = inputs @ values.T
        magnitude = np.abs(inputs) @ np.abs(values, out=values).T
        sums = _DENSE_SUMS if isinstance(matrix, DenseMatrix) else _PACKED_SUMS
        return expected, _bound(values.shape[1] / sums, magnitude)
    assert isinstance(matrix, CodedMatrix)
    wide = QuantizedActivations(x.codes, x.scales.astype(np.float64), x.group_size)
    total = ops.linear_quantized(wide, matrix.codes, matrix.scales, matrix.group_size)
    # Codes are -127..127, so their magnitudes are int8 too.
    sizes = QuantizedActivations(np.abs(x.codes), np.abs(wide.scales), x.group_size)
    total_size = ops.linear_quantized(
        sizes, np.abs(matrix.codes), np.abs(matrix.scales), matrix.group_size
    )
    # Integer dot products are exact; what is rounded are sums of one term for each group.
    bound = _bound(x.codes.shape[1] / x.group_size, total_size)
    if matrix.rounding is not None:
        bound = bound + matrix.rounding.bound(x.codes, x.scales)
    return np.asarray(total), bound


def _bound(terms: float, magnitude: NDArray[Any]) -> F64:
    return np.asarray((terms + _OTHER_ROUNDINGS) * FLOAT32_ROUNDING * magnitude, np.float64)


def _text(value: object) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def attention_of_head(
    q: F64, cache: KvHead, first: int, last: int, scale: float
) -> tuple[F64, F64]:
    """(softmax(q . K * scale) . V, bound on the error of the kernels), each (n_heads, head_dim).

    An error d of a score is a factor e^d of its weight, and another of the sum of weights. A score
    has head_dim roundings in turn; over int8 keys also the query's, of half a step of
    max|q| / 127. Over int8 values, a weight times the scale of its value is rounded by half a step
    of 1/127 of the largest in its block.

    Args:
        q: (n_heads, head_dim), of heads that share the key head.
        cache: that head; positions first..last are attended to.
    """
    window = slice(first, last + 1)
    keys, values = (x[window].astype(np.float64) for x in (cache.keys(), cache.values()))
    scores = scale * (q @ keys.T)
    error = (cache.head_dim + 8) * FLOAT32_ROUNDING * scale * (np.abs(q) @ np.abs(keys).T)
    error += 4 * FLOAT32_ROUNDING * np.abs(scores)
    if cache.kv_type == "int8":
        half_step = np.abs(q).max(axis=1, keepdims=True) / 253
        error += scale * half_step * np.abs(keys).sum(axis=1)
    weights: F64 = np.asarray(ops.softmax(scores), np.float64)
    worst = error.max(axis=1, keepdims=True)
    relative = np.expm1(2 * worst) + (len(keys) + 24) * FLOAT32_ROUNDING
    bound = relative * (weights @ np.abs(values))
    if cache.kv_type == "int8":
        scaled = weights * cache.scales()[1][window]
        codes = np.abs(cache.stored_values()[window].astype(np.float64))
        blocks = np.arange(first, last + 1) // KV_BLOCK
        for block in np.unique(blocks):
            inside = blocks == block
            half_step = scaled[:, inside].max(axis=1, keepdims=True) / 253
            bound += np.exp(2 * worst) * half_step * codes[inside].sum(axis=0)
    return weights @ values, bound + UNDERFLOW * np.abs(values).max()
