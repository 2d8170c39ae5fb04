"""Single kernels on NumPy arrays, for tests, benchmarks and the self-test.

The decoder calls the kernels without Python; nothing here is on the chat path. The native layer
checks dtype, C order, alignment and exact sizes of every array and raises `KernelError`.

Float16 caches are passed as uint16 arrays (`array.view(numpy.uint16)`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qh_kernels import isa as instruction_sets
from qh_kernels.decoder import Matrix
from qh_kernels.kv_cache import KvHead

__all__ = [
    "ACTIVATION_GROUP",
    "ACTIVATION_PAD",
    "QuantizedTokens",
    "add",
    "attention",
    "code_sums",
    "format_names",
    "format_nbytes",
    "gated",
    "linear_f32",
    "linear_quantized",
    "pad_activations",
    "quantize_groups",
    "quantize_token",
    "rms_norm",
    "rope",
    "store_kv",
    "unpack_row",
]

F32 = NDArray[np.float32]

ACTIVATION_GROUP = 32
ACTIVATION_PAD = 128


@dataclass(frozen=True)
class QuantizedTokens:
    """int8 activations.

    Attributes:
        codes: int8 (n_tokens, columns padded with zeros to a multiple of 128).
        scales: float32 (n_tokens, groups): what a code is multiplied by. One group per token for
            ternary, else one per 32 columns.
        sums: int32 (n_tokens, n): sums of the codes. One per token for ternary, else two for each
            32 columns: of all of them and of the first 16.
    """

    codes: NDArray[np.int8]
    scales: F32
    sums: NDArray[np.int32]


def format_names() -> tuple[str, ...]:
    """Return the weight formats of the native layer, in the order of `src/formats.h`."""
    from qh_kernels import _native

    return tuple(_native.format_names())


def format_nbytes(format: str, rows: int, cols: int) -> int:
    """Return the packed size in bytes of a (rows, cols) matrix.

    Raises:
        KernelError: unknown format, or a dimension below 1 or above the limit of the kernels.
    """
    from qh_kernels import _native

    return _native.format_nbytes(format, rows, cols)


def pad_activations(x: F32) -> F32:
    """Return x (n_tokens, cols) with zeros after cols, to a multiple of 128."""
    padded = np.zeros((x.shape[0], _round_up(x.shape[1])), np.float32)
    padded[:, : x.shape[1]] = x
    return padded


def linear_quantized(
    matrix: Matrix,
    x: QuantizedTokens,
    *,
    isa: str | None = None,
    rows: tuple[int, int] | None = None,
    out: F32 | None = None,
) -> F32:
    """Return y (n_tokens, matrix.rows) = x W^T; the bits are defined in `src/scalar/linear.h`.

    Args:
        matrix: packed weights.
        x: from `quantize_token` for ternary, from `quantize_groups` for the other formats.
        isa: instruction set; None for `isa.best()`.
        rows: computes rows [begin, end) only; begin and end are multiples of 16, or end is the
            number of rows. Other elements of out are left as they are.
        out: float32 (n_tokens, matrix.rows) to write into.

    Raises:
        KernelError: an argument does not fit, or the format is dense.
    """
    from qh_kernels import _native

    begin, end = (0, matrix.rows) if rows is None else rows
    y = np.zeros((x.codes.shape[0], matrix.rows), np.float32) if out is None else out
    _native.linear_quantized(_isa(isa), *_parts(matrix), x.codes, x.scales, x.sums, y, begin, end)
    return y


def linear_f32(
    matrix: Matrix,
    x: F32,
    *,
    isa: str | None = None,
    rows: tuple[int, int] | None = None,
    out: F32 | None = None,
) -> F32:
    """Return y (n_tokens, matrix.rows) = x W^T with float32 inputs, for any format.

    Error against exact arithmetic: at most (cols + 8) * 2^-24 * sum |w x| for each element.

    Args:
        matrix: weights.
        x: float32 (n_tokens, cols); for packed formats padded as by `pad_activations`.
        isa: instruction set; None for `isa.best()`.
        rows: as in `linear_quantized`.
        out: as in `linear_quantized`.

    Raises:
        KernelError: an argument does not fit.
    """
    from qh_kernels import _native

    begin, end = (0, matrix.rows) if rows is None else rows
    y = np.zeros((x.shape[0], matrix.rows), np.float32) if out is None else out
    _native.linear_f32(_isa(isa), *_parts(matrix), x, y, begin, end)
    return y


def unpack_row(matrix: Matrix, row: int, *, isa: str | None = None) -> F32:
    """Return float32 (cols,): the values of one row, scale times code with one rounding.

    Raises:
        KernelError: an argument does not fit.
    """
    from qh_kernels import _native

    out = np.empty(matrix.cols, np.float32)
    _native.unpack_row(_isa(isa), *_parts(matrix), row, out)
    return out


def code_sums(codes: NDArray[np.int8], *, per_token: bool) -> NDArray[np.int32]:
    """Return the sums of `QuantizedTokens` for codes (n_tokens, padded columns)."""
    if per_token:
        return np.asarray(codes.sum(axis=1, keepdims=True, dtype=np.int32))
    groups = codes.reshape(len(codes), -1, ACTIVATION_GROUP)
    first = groups[:, :, : ACTIVATION_GROUP // 2].sum(axis=2, dtype=np.int32)
    pairs = np.stack([groups.sum(axis=2, dtype=np.int32), first], axis=2)
    return pairs.reshape(len(codes), -1)


def quantize_token(x: F32, *, isa: str | None = None) -> QuantizedTokens:
    """Return codes of each row of x (n_tokens, cols) with one scale per token.

    float32 arithmetic: a = 127 / max(max|x|, 1e-5);
    code = clamp(round_half_even(x * a), -128, 127);
    scale = 1 / a. A row with a non-finite value gets codes 0 and scale NaN.
    Source: Ma et al. 2024 (BitNet b1.58), section 2.

    Raises:
        KernelError: an argument does not fit.
    """
    from qh_kernels import _native

    name = _isa(isa)
    result = _empty_tokens(x, 1, 1)
    for row, codes, scales, sums in zip(x, result.codes, result.scales, result.sums, strict=True):
        _native.quantize_token(name, row, codes, scales, sums)
    return result


def quantize_groups(x: F32, *, isa: str | None = None) -> QuantizedTokens:
    """Return codes of each row of x (n_tokens, cols) with one scale per 32 columns.

    float32 arithmetic: scale = max|x| / 127; code = clamp(round_half_even(x / scale), -127, 127),
    0 where scale is 0. A group with a non-finite value gets codes 0 and scale NaN.

    Raises:
        KernelError: an argument does not fit.
    """
    from qh_kernels import _native

    name = _isa(isa)
    groups = _round_up(x.shape[1]) // ACTIVATION_GROUP
    result = _empty_tokens(x, groups, 2 * groups)
    for row, codes, scales, sums in zip(x, result.codes, result.scales, result.sums, strict=True):
        _native.quantize_groups(name, row, codes, scales, sums)
    return result


def rms_norm(x: F32, weight: F32, eps: float, *, isa: str | None = None) -> F32:
    """Return x / sqrt(mean(x^2) + eps) * weight for x, weight (n,).

    Raises:
        KernelError: an argument does not fit.
    """
    from qh_kernels import _native

    out = np.empty_like(x)
    _native.rms_norm(_isa(isa), x, weight, eps, out)
    return out


def add(x: F32, y: F32, *, isa: str | None = None) -> None:
    """x (n,) becomes x + y.

    Raises:
        KernelError: an argument does not fit.
    """
    from qh_kernels import _native

    _native.add(_isa(isa), x, y)


def gated(
    activation: Literal["silu", "relu2"], gate: F32, up: F32, *, isa: str | None = None
) -> F32:
    """Return activation(gate) * up for gate, up (n,).

    silu(g) = g / (1 + e^-g), e^x within 2 ulp; relu2(g) = max(g, 0)^2.

    Raises:
        KernelError: an argument does not fit.
    """
    from qh_kernels import _native

    out = np.empty_like(gate)
    _native.gated(_isa(isa), activation, gate, up, out)
    return out


def rope(x: F32, cos: F32, sin: F32, *, isa: str | None = None) -> None:
    """Rotates the pairs (i, i + head_dim / 2) of each head of x (n_heads, head_dim) in place.

    Args:
        x: heads of one token.
        cos: (head_dim / 2,) of the token's position.
        sin: likewise.
        isa: instruction set; None for `isa.best()`.

    Raises:
        KernelError: an argument does not fit.
    """
    from qh_kernels import _native

    _native.rope(_isa(isa), x, cos, sin)


def store_kv(cache: KvHead, position: int, key: F32, value: F32, *, isa: str | None = None) -> None:
    """Puts key and value (head_dim,) of one position into the cache.

    float16 is rounded half to even; for int8 see `qh_kernels.kv_cache`.

    Raises:
        KernelError: an argument does not fit.
    """
    from qh_kernels import _native

    _native.store_kv(_isa(isa), cache.kv_type, position, key, value, cache.data)


def attention(
    q: F32, cache: KvHead, *, first: int, last: int, scale: float, isa: str | None = None
) -> F32:
    """Return softmax(q . K * scale) . V, float32 (n_heads, head_dim), of one token.

    Over int8 keys and values, queries and weights are rounded to 8 bits: by at most max|q| / 254 of
    a head, and in each block of 64 positions, where weight = e^(score - largest so far), by
    max(weight * scale of the value) / 254. The "scalar" instruction set does not round them.

    Args:
        q: (n_heads, head_dim), of heads that share the key head.
        cache: keys and values.
        first: first position attended to.
        last: last position, included.
        scale: usually 1 / sqrt(head_dim).
        isa: instruction set; None for `isa.best()`.

    Raises:
        KernelError: an argument does not fit.
    """
    from qh_kernels import _native

    out = np.empty_like(q)
    _native.attention(_isa(isa), cache.kv_type, q, cache.data, first, last, scale, out)
    return out


def _isa(name: str | None) -> str:
    return instruction_sets.best() if name is None else name


def _parts(matrix: Matrix) -> tuple[str, NDArray[Any], int, int]:
    return matrix.format, matrix.data, matrix.rows, matrix.cols


def _round_up(cols: int) -> int:
    return -(-cols // ACTIVATION_PAD) * ACTIVATION_PAD


def _empty_tokens(x: F32, groups: int, sums: int) -> QuantizedTokens:
    n_tokens = x.shape[0]
    return QuantizedTokens(
        codes=np.empty((n_tokens, _round_up(x.shape[1])), np.int8),
        scales=np.empty((n_tokens, groups), np.float32),
        sums=np.empty((n_tokens, sums), np.int32),
    )
