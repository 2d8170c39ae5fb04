"""Packing one matrix in row chunks, so that memory stays bounded whatever its size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from qh_runtime.checkpoints.layouts import CodedWeights, LinearWeights
from qh_runtime.errors import CheckpointError, FormatError
from qh_runtime.formats import WeightFormat, get
from qh_runtime.formats.base import TILE_ROWS
from qh_runtime.formats.families.codebook import CodebookFormat
from qh_runtime.formats.families.dense import DenseFormat

__all__ = ["PackedRows", "packed_range", "packed_rows"]

# Weights per chunk: 2 MiB of float32, so that the passes of a quantizer stay in a core's cache.
_CHUNK_WEIGHTS = 1 << 19

PackedRows = tuple[int, NDArray[np.uint8]]


def packed_rows(
    name: str, weights: LinearWeights, format_name: str, stopped: Callable[[], bool]
) -> Iterator[PackedRows]:
    """Yield (byte offset, packed bytes) of a matrix, front to back, until done or stopped.

    Raises:
        CheckpointError: weights that the format cannot hold (not finite, too large). Facts: tensor.
    """
    target = get(format_name)
    rows, cols = _shape(weights, target)
    step = max(1, _CHUNK_WEIGHTS // cols // TILE_ROWS) * TILE_ROWS if target.row_chunks else rows
    offset = 0
    for begin in range(0, rows, step):
        if stopped():
            return
        packed = packed_range(name, weights, target, begin, min(begin + step, rows))
        yield offset, packed
        offset += packed.nbytes


def packed_range(
    name: str, weights: LinearWeights, target: WeightFormat, begin: int, end: int
) -> NDArray[np.uint8]:
    """Return the packed bytes of rows begin..end - 1; begin is a multiple of TILE_ROWS.

    Of a format without row_chunks, all rows.

    Raises:
        CheckpointError: weights that the format cannot hold (not finite, too large). Facts: tensor.
    """
    try:
        return _pack(weights, target, begin, end)
    except FormatError as error:
        raise CheckpointError(
            f"{name}: rows {begin}..{end - 1}: {error.message}",
            hint="the weights are damaged or do not suit this format",
            tensor=name,
            **{key: value for key, value in error.facts.items() if key != "tensor"},
        ) from error


def _pack(weights: LinearWeights, target: WeightFormat, begin: int, end: int) -> NDArray[np.uint8]:
    shape = (end - begin, _shape(weights, target)[1])
    if isinstance(weights, CodedWeights) and not target.row_chunks:
        return target.pack_codes(weights.codes, weights.scales, shape)
    if isinstance(weights, CodedWeights):
        scales = weights.scales
        per_row = scales.ndim > 0 and scales.shape[0] == weights.codes.shape[0]
        return target.pack_codes(
            weights.codes[begin:end], scales[begin:end] if per_row else scales, shape
        )
    stored = get(weights.format)
    assert isinstance(stored, DenseFormat)
    return target.pack(stored.decode(weights.elements[begin:end]))


def _shape(weights: LinearWeights, target: WeightFormat) -> tuple[int, int]:
    if isinstance(weights, CodedWeights) and isinstance(target, CodebookFormat):
        return (weights.codes.shape[0], weights.codes.shape[1] * target.vector)
    array = weights.codes if isinstance(weights, CodedWeights) else weights.elements
    return (array.shape[0], array.shape[1])
