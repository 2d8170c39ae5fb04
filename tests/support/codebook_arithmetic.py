"""Products with codebook matrices in NumPy, from their definition and not from the C++ code.

float32, one rounding for each operation, in the stated order; integers are exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qh_kernels.cpu import QuantizedTokens

__all__ = ["SCHEMES", "codebook_product", "narrow_weights"]

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

# Format: codebooks, bits of a code, weights of a code, bits that a table drops.
SCHEMES = {
    "aqlm_2x8_g8": (2, 8, 8, 11),
    "aqlm_1x16_g8": (1, 16, 8, 0),
    "aqlm_1x8_g8": (1, 8, 8, 10),
    "aqlm_1x16_g16": (1, 16, 16, 0),
    "aqlm_8x8_g32": (8, 8, 32, 13),
    "aqlm_2x16_g8": (2, 16, 8, 0),
}
# From so many tokens on, formats with tables multiply weights of 8 bits.
NARROW_TOKENS = 16


def codebook_product(
    name: str,
    codes: NDArray[Any],
    factors: F32,
    entries: NDArray[np.integer],
    x: QuantizedTokens,
    *,
    n_tokens: int | None = None,
) -> F32:
    """y (tokens, N) of codes (N, groups, M), row factors (N,) and entries (M, codes, G).

    Args:
        n_tokens: of the product that these tokens are a part of; None: all of it.
    """
    shift = SCHEMES[name][3]
    books = entries.astype(np.int64)
    if shift == 0:
        return _by_sums(codes, books, x) * factors
    if (len(x.codes) if n_tokens is None else n_tokens) >= NARROW_TOKENS:
        return _narrow_product(codes, factors, books, x)
    return _by_tables(codes, books, shift, x) * factors


def narrow_weights(codes: NDArray[Any], books: I64) -> tuple[I64, np.float32]:
    """The 8-bit weights (N, K) of a format with tables, and what they are multiplied by."""
    used = max(int(np.abs(books[m][codes[:, :, m]]).max()) for m in range(len(books)))
    sums = sum(books[m][codes[:, :, m]] for m in range(len(books)))
    largest = max(used, int(np.abs(sums).max()), 127)
    multiplier = 127 * 32768 // largest
    narrow = np.clip((books * multiplier + 16384) >> 15, -127, 127)
    total = np.zeros(np.shape(sums), np.int64)
    for m in range(len(books)):
        total = np.clip(total + narrow[m][codes[:, :, m]], -128, 127)
    return total.reshape(len(codes), -1), np.float32(32768) / np.float32(multiplier)


def _inputs(x: QuantizedTokens, columns: int) -> tuple[I64, int]:
    """Codes (tokens, spans, 32) that the weights have columns for, and how many spans."""
    spans = (columns + 31) // 32
    return x.codes[:, : 32 * spans].astype(np.int64).reshape(len(x.codes), spans, 32), spans


def _padded(weights: I64, spans: int) -> I64:
    return np.pad(weights, ((0, 0), (0, 32 * spans - weights.shape[1]))).reshape(
        len(weights), spans, 32
    )


def _by_sums(codes: NDArray[Any], books: I64, x: QuantizedTokens) -> F32:
    weights = sum(books[m][codes[:, :, m]] for m in range(len(books)))
    inputs, spans = _inputs(x, codes.shape[1] * books.shape[2])
    by_span = _padded(np.reshape(weights, (len(codes), -1)), spans)
    s = np.zeros((len(inputs), len(codes)), np.float32)
    for g in range(spans):
        acc = inputs[:, g] @ by_span[:, g].T
        s = s + x.scales[:, g : g + 1] * acc.astype(np.float32)
    return s


def _narrow_product(codes: NDArray[Any], factors: F32, books: I64, x: QuantizedTokens) -> F32:
    weights, step = narrow_weights(codes, books)
    inputs, spans = _inputs(x, weights.shape[1])
    by_span = _padded(weights, spans)
    s = np.zeros((len(inputs), len(codes)), np.float32)
    for g in range(spans):
        acc = inputs[:, g] @ by_span[:, g].T
        s = s + x.scales[:, g : g + 1] * acc.astype(np.float32)
    return s * (factors * step)


def _by_tables(codes: NDArray[Any], books: I64, shift: int, x: QuantizedTokens) -> F32:
    vector = books.shape[2]
    per_span = 32 // vector
    inputs, spans = _inputs(x, codes.shape[1] * vector)
    rows = len(codes)
    padded = np.zeros((rows, spans * per_span, len(books)), np.int64)
    padded[:, : codes.shape[1]] = codes
    y = np.zeros((len(inputs), rows), np.float32)
    for t, token in enumerate(inputs):
        by_group = token.reshape(spans * per_span, vector)
        for block in range(0, spans, 32):
            part = np.zeros(rows, np.float32)
            for chunk in range(block, min(block + 32, spans), 8):
                end = min(chunk + 8, block + 32, spans)
                weights, factor = _chunk_scales(x.scales[t, chunk:end], shift)
                acc = np.zeros(rows, np.int64)
                for span in range(chunk, end):
                    sums = np.zeros(rows, np.int64)
                    for group in range(span * per_span, (span + 1) * per_span):
                        for m, book in enumerate(books):
                            table = (book @ by_group[group] + (1 << shift >> 1)) >> shift
                            sums += np.clip(table, -32768, 32767)[padded[:, group, m]]
                    sums = (sums + 32768) % 65536 - 32768
                    acc += weights[span - chunk] * sums
                part = part + factor * acc.astype(np.float32)
            y[t] = y[t] + part
    return y


def _chunk_scales(scales: F32, shift: int) -> tuple[list[int], np.float32]:
    if not np.isfinite(scales).all():
        return [0] * len(scales), np.float32(np.nan)
    largest = np.abs(scales).max()
    if not largest > 0:
        return [0] * len(scales), np.float32(0)
    weights = [
        int(scale / largest * np.float32(8191) + np.float32(8191.5)) - 8191 for scale in scales
    ]
    return weights, largest * (np.float32(1 << shift) / np.float32(8191))
