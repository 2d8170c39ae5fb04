"""What can be seen of weights without computing with them: rows, constants, values not finite."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np

from qh_kernels import cpu
from qh_kernels.decoder import DecoderWeights, Matrix
from qh_runtime import formats
from qh_runtime.architectures import DecoderSpec
from qh_runtime.checkpoints.layouts import Layout
from qh_runtime.checkpoints.layouts.dense import DenseLayout
from qh_runtime.checkpoints.reader import TensorSource
from qh_runtime.errors import FormatError, IntegrityError
from qh_runtime.first_load.sampling import sampled_tiles
from qh_runtime.formats.base import TILE_ROWS
from qh_runtime.formats.families.dense import DenseFormat
from qh_runtime.packing import MatrixPlan, PackedModel
from qh_runtime.packing.rows import packed_range

__all__ = ["compare_with_source", "constant_weights", "matrices_of", "not_finite"]

# Tiles of each matrix that are packed once more.
_PACKED_TILES = 3
# So many weights of dense matrices are read (32 MiB of a bf16 checkpoint, which may not lie in the
# system's cache any more): about all matrices of a 1B model, a quarter of those of an 8B model.
_DENSE_WEIGHTS = 16 << 20
# A layout gives coded matrices only whole, at 1 to 5 ns a weight; so many weights are affordable.
_CODED_WEIGHTS = 48 << 20
_SEED = 20261124
# A matrix is constant if so many of its rows are, and they hold so many values.
_CONSTANT_ROWS, _CONSTANT_VALUES = 8, 64
_SCAN_WEIGHTS = 1 << 20


def matrices_of(spec: DecoderSpec, weights: DecoderWeights) -> Iterator[tuple[str, Matrix]]:
    """(module path, matrix): embedding, linear layers in the order they run, head unless tied."""
    yield spec.embedding, weights.embedding
    for layer, held in zip(spec.layers, weights.layers, strict=True):
        linears = (held.q, held.k, held.v, held.o, held.gate, held.up, held.down)
        for linear, matrix in zip(layer.linears, linears, strict=True):
            yield linear.name, matrix
    if not spec.tied_head:
        yield spec.head.name, weights.head


def constant_weights(spec: DecoderSpec, weights: DecoderWeights) -> tuple[str, ...]:
    """Tensors that tell nothing: matrices of one value all over (by sampled rows), norms of zeros.

    Zero is what a file that was never written holds. A trained matrix may be so too, where a block
    was added or switched off by zeros.
    """
    found = [name for name, matrix in matrices_of(spec, weights) if _is_constant(matrix)]
    norms = [(spec.final_norm, weights.final_norm)]
    for layer, held in zip(spec.layers, weights.layers, strict=True):
        norms += [(layer.attention_norm, held.attention_norm), (layer.mlp_norm, held.mlp_norm)]
    return (*found, *(name for name, values in norms if not values.any()))


def _is_constant(matrix: Matrix) -> bool:
    rows = np.linspace(0, matrix.rows - 1, min(matrix.rows, _CONSTANT_ROWS)).astype(int)
    if len(rows) * matrix.cols < _CONSTANT_VALUES:
        return False
    value: float | None = None
    # From the middle on: a row that is not constant, which the first one mostly is, ends it.
    for row in (*rows[len(rows) // 2 :], *rows[: len(rows) // 2]):
        values = cpu.unpack_row(matrix, int(row), isa="scalar")
        value = float(values[0]) if value is None else value
        if not (values == value).all():
            return False
    return True


def not_finite(spec: DecoderSpec, weights: DecoderWeights, layer: int | None = None) -> str | None:
    """The first matrix with a NaN or an infinity, None where there is none.

    Args:
        layer: looks at the matrices of this block only; None at embedding and head.
    """
    names: set[str] = {spec.embedding, spec.head.name}
    if layer is not None:
        names = {linear.name for linear in spec.layers[layer].linears}
    for name, matrix in matrices_of(spec, weights):
        if name in names and not _is_finite(matrix):
            return name
    return None


def _is_finite(matrix: Matrix) -> bool:
    weight_format = formats.get(matrix.format)
    if not isinstance(weight_format, DenseFormat):
        # Codes are finite, and scales are checked with them.
        try:
            weight_format.check(matrix.data, (matrix.rows, matrix.cols))
        except FormatError:
            return False
        return True
    elements = matrix.data.view(weight_format.dtype)
    return all(
        bool(np.isfinite(weight_format.decode(elements[begin : begin + _SCAN_WEIGHTS])).all())
        for begin in range(0, len(elements), _SCAN_WEIGHTS)
    )


def compare_with_source(
    spec: DecoderSpec, source: TensorSource, layout: Layout, packed: PackedModel
) -> None:
    """Return normally if sampled packed rows are what the checkpoint's own rows pack to.

    Dense matrices are sampled in a fixed random order, matrices that the checkpoint holds in codes
    from the smallest on, while they are affordable.

    Raises:
        IntegrityError: they differ. Facts: tensor, path (None in memory), rows.
        CheckpointError: the checkpoint's rows cannot be packed.
    """
    held = dict(matrices_of(spec, packed.weights))
    if packed.weights.head_scan is not None:
        held[f"{spec.head.name}.scan"] = packed.weights.head_scan
    tables = {spec.embedding, spec.head.name}
    dense_left, coded_left = _DENSE_WEIGHTS, _CODED_WEIGHTS
    order = random.Random(_SEED).sample(packed.matrices, len(packed.matrices))
    order.sort(key=lambda plan: plan.rows * plan.cols if _is_coded(plan) else 0)
    for plan in order:
        if not plan.repacked:
            continue
        if not source.holds(f"{plan.module}.weight"):
            # Removed after all of the pack was compared with it.
            continue
        if _is_coded(plan):
            coded_left -= plan.rows * plan.cols
        else:
            dense_left -= _PACKED_TILES * TILE_ROWS * plan.cols
        if (coded_left if _is_coded(plan) else dense_left) < 0:
            continue
        rows_of = DenseLayout() if plan.module in tables else layout
        weights = rows_of.linear(source, plan.module, plan.shape)
        target = formats.get(plan.format)
        if not target.row_chunks:
            expected = packed_range(plan.name, weights, target, 0, plan.rows)
            if not np.array_equal(held[plan.name].data, expected):
                raise _differs(plan, packed, 0, plan.rows)
            continue
        tile_bytes = target.nbytes((TILE_ROWS, plan.cols))
        for tile in sampled_tiles(plan.rows, _PACKED_TILES):
            begin = int(tile) * TILE_ROWS
            end = min(begin + TILE_ROWS, plan.rows)
            expected = packed_range(plan.name, weights, target, begin, end)
            offset = int(tile) * tile_bytes
            if not np.array_equal(held[plan.name].data[offset : offset + len(expected)], expected):
                raise _differs(plan, packed, begin, end)


def _is_coded(plan: MatrixPlan) -> bool:
    """Whether the checkpoint holds its codes, which are all compared."""
    return formats.get(plan.format).family in ("ternary", "codebook")


def _differs(plan: MatrixPlan, packed: PackedModel, begin: int, end: int) -> IntegrityError:
    path = packed.pack_path
    where = "in memory" if path is None else path.name
    hint = "check the memory of this machine"
    if path is not None:
        hint = f"delete {path.name} in the folder of packed weights; it is made again"
    return IntegrityError(
        f"{plan.name}: packed rows {begin}..{end - 1} {where} are not those of the checkpoint",
        hint=hint,
        tensor=plan.name,
        path=None if path is None else str(path),
        rows=(begin, end),
        expected="the rows of the checkpoint in this format",
        found="other bytes",
    )
