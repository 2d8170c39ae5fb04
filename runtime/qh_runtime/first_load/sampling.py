"""Rows of a packed matrix as the reference holds them: a few tiles, the same at every call.

A layer of an 8B model has 218 million weights. What goes wrong in a kernel (a lane, a tail, a
scale) goes wrong in every tile or in the last one, so a sample finds it in a hundredth of the time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qh_kernels.decoder import Matrix
from qh_runtime import formats
from qh_runtime.formats.base import TILE_ROWS
from qh_runtime.formats.families.codebook import CodebookFormat
from qh_runtime.reference.weights import CodedMatrix, DenseMatrix, packed_matrix
from qh_runtime.reference.weights import Matrix as ReferenceMatrix

__all__ = ["rows_of_tiles", "sampled_rows", "sampled_tiles"]

_TILES = 16
_SEED = 20261124
# Weights unpacked at a time: 16 MiB as float64, and as much again for their magnitudes.
_BLOCK_WEIGHTS = 1 << 21

Indices = NDArray[np.intp]


def sampled_tiles(rows: int, count: int = _TILES) -> Indices:
    """Ascending numbers of at most `count` tiles (of 16 rows) of a matrix, first and last included.

    Args:
        count: at least 2.
    """
    tiles = -(-rows // TILE_ROWS)
    if tiles <= count:
        return np.arange(tiles)
    inner = random.Random(_SEED).sample(range(1, tiles - 1), count - 2)
    return np.array(sorted([0, *inner, tiles - 1]))


def sampled_rows(matrix: Matrix, *, exact: bool) -> Iterator[tuple[Indices, ReferenceMatrix]]:
    """Yield (row numbers, these rows), a bounded number of weights at a time.

    Args:
        exact: float32 activations for every format but ternary.

    Raises:
        FormatError: bytes that the format never writes.
    """
    tiles = sampled_tiles(matrix.rows)
    step = max(1, _BLOCK_WEIGHTS // (TILE_ROWS * matrix.cols))
    for begin in range(0, len(tiles), step):
        yield rows_of_tiles(matrix, tiles[begin : begin + step], exact=exact)


def rows_of_tiles(
    matrix: Matrix, tiles: Indices, *, exact: bool
) -> tuple[Indices, ReferenceMatrix]:
    """The rows of some tiles: (row numbers, what they hold)."""
    weight_format = formats.get(matrix.format)
    if isinstance(weight_format, CodebookFormat):
        return _rows_of_codebooks(weight_format, matrix, tiles, exact=exact)
    rows = (tiles[:, None] * TILE_ROWS + np.arange(TILE_ROWS)).reshape(-1)
    inside = rows < matrix.rows
    if weight_format.family == "dense":
        rows = rows[inside]
        data = matrix.data.reshape(matrix.rows, -1)[rows].reshape(-1)
        return rows, packed_matrix(matrix.format, data, (len(rows), matrix.cols))
    tile_bytes = weight_format.nbytes((TILE_ROWS, matrix.cols))
    data = matrix.data.reshape(-1, tile_bytes)[tiles].reshape(-1)
    exact = exact and weight_format.family != "ternary"
    unpacked = packed_matrix(matrix.format, data, (len(rows), matrix.cols), exact=exact)
    if inside.all():
        return rows, unpacked
    # The last tile is filled up with rows that the matrix does not have.
    assert not isinstance(unpacked, DenseMatrix)
    kept = CodedMatrix(
        unpacked.codes[inside], unpacked.scales[inside], unpacked.group_size, unpacked.activations
    )
    return rows[inside], kept


def _rows_of_codebooks(
    weight_format: CodebookFormat, matrix: Matrix, tiles: Indices, *, exact: bool
) -> tuple[Indices, ReferenceMatrix]:
    """The same of a matrix whose tiles do not stand alone."""
    rows = (tiles[:, None] * TILE_ROWS + np.arange(TILE_ROWS)).reshape(-1)
    rows = rows[rows < matrix.rows]
    data = weight_format.take_rows(matrix.data, (matrix.rows, matrix.cols), rows)
    taken = packed_matrix(matrix.format, data, (len(rows), matrix.cols), exact=exact)
    return rows, taken
