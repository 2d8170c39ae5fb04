"""What the reference decoder computes with: matrices as float32 or as integer codes, and vectors.

Nothing here knows packed bytes; codes come from `qh_runtime.formats` or from a checkpoint layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qh_runtime import formats
from qh_runtime.architectures.base import DecoderSpec
from qh_runtime.errors import CheckpointError
from qh_runtime.formats.base import Codes, Scales, WeightFormat
from qh_runtime.formats.families.codebook import CodebookFormat, TableRounding

__all__ = [
    "CodedMatrix",
    "DenseMatrix",
    "Matrix",
    "ReferenceWeights",
    "dense_weights",
    "packed_matrix",
    "quantized_matrix",
    "quantized_weights",
]

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class DenseMatrix:
    """A matrix (out_features, in_features) float32, multiplied with unquantized activations."""

    values: F32


@dataclass(frozen=True)
class CodedMatrix:
    """Codes (out_features, in_features) with float32 scales (out_features, n_groups).

    Attributes:
        codes: what scales multiply: int8; float32 where activations are not quantized and the
            format's values are no integers.
        group_size: consecutive inputs that share a scale; in_features for one scale per row.
        activations: how inputs are quantized: one scale per token (ternary), one per group of 32
            inputs (int8, 4-bit and codebook formats), or not at all.
        rounding: what the kernels round in products with int8 inputs, where they are not exact.
    """

    codes: NDArray[np.integer] | F32
    scales: F32
    group_size: int
    activations: Literal["token", "group", "none"]
    rounding: TableRounding | None = None

    @property
    def values(self) -> F32:
        """The float32 weights that the codes stand for."""
        expanded = np.repeat(self.scales, self.group_size, axis=1)[:, : self.codes.shape[1]]
        return np.asarray(self.codes.astype(np.float32) * expanded)


Matrix = DenseMatrix | CodedMatrix


@dataclass(frozen=True)
class ReferenceWeights:
    """All weights of a decoder.

    Attributes:
        matrices: by module path, without ".weight": linear layers, embedding, head.
        vectors: by tensor name: norms, and biases as "<module path>.bias"; float32.
    """

    matrices: Mapping[str, Matrix]
    vectors: Mapping[str, F32]

    def matrix(self, name: str, shape: tuple[int, int]) -> Matrix:
        """The matrix of a module path.

        Raises:
            CheckpointError: it is missing or has another shape. Facts: tensor, expected, found.
        """
        matrix = self.matrices.get(name)
        if matrix is None:
            raise CheckpointError(
                f"{name}: expected a matrix of shape {shape}, found none",
                tensor=name,
                expected=shape,
                found=None,
            )
        found = (matrix.codes if isinstance(matrix, CodedMatrix) else matrix.values).shape
        if found != shape:
            raise CheckpointError(
                f"{name}: expected shape {shape}, found {found}",
                tensor=name,
                expected=shape,
                found=found,
            )
        return matrix

    def vector(self, name: str, length: int) -> F32:
        """The vector of a tensor name.

        Raises:
            CheckpointError: it is missing or has another length. Facts: tensor, expected, found.
        """
        vector = self.vectors.get(name)
        found = None if vector is None else vector.shape
        if vector is None or found != (length,):
            raise CheckpointError(
                f"{name}: expected {length} values, found {found}",
                tensor=name,
                expected=(length,),
                found=found,
            )
        return vector


def dense_weights(tensors: Mapping[str, NDArray[np.floating]]) -> ReferenceWeights:
    """Weights from tensors of a checkpoint, by full tensor name, in any float dtype."""
    matrices: dict[str, Matrix] = {}
    vectors: dict[str, F32] = {}
    for name, tensor in tensors.items():
        values = np.asarray(tensor, dtype=np.float32)
        if values.ndim == 2:
            matrices[name.removesuffix(".weight")] = DenseMatrix(values)
        else:
            vectors[name] = values
    return ReferenceWeights(matrices, vectors)


def quantized_matrix(format_name: str, weights: F32, *, exact: bool = False) -> Matrix:
    """The matrix that packing into a weight format leaves.

    Args:
        weights: (out_features, in_features).
        exact: keep activations in float32 (all formats but the dense ones, which do anyway).
    """
    weight_format = formats.get(format_name)
    return _matrix(weight_format, *weight_format.quantize(weights), weights.shape[1], exact=exact)


def packed_matrix(
    format_name: str, data: NDArray[np.uint8], shape: tuple[int, int], *, exact: bool = False
) -> Matrix:
    """The matrix that packed bytes stand for.

    Args:
        data: uint8, exactly the format's nbytes(shape).
        exact: keep activations in float32 (all formats but the dense ones, which do anyway).

    Raises:
        FormatError: the bytes are none that the format writes.
    """
    weight_format = formats.get(format_name)
    return _matrix(weight_format, *weight_format.unpack_codes(data, shape), shape[1], exact=exact)


def _matrix(
    weight_format: WeightFormat, codes: Codes, scales: Scales, columns: int, *, exact: bool
) -> Matrix:
    if weight_format.family == "dense":
        return DenseMatrix(weight_format.dequantize(codes, scales))
    group = weight_format.group_size or columns
    kind: Literal["token", "group", "none"] = (
        "none" if exact else "token" if weight_format.family == "ternary" else "group"
    )
    if isinstance(weight_format, CodebookFormat):
        integers, factors = weight_format.coded(codes, scales)
        rounding = None if exact else weight_format.rounding(codes, scales)
        return CodedMatrix(integers[:, :columns], factors, group, kind, rounding)
    if exact:
        return CodedMatrix(*weight_format.factors(codes, scales), group, kind)
    return CodedMatrix(*weight_format.coded(codes, scales), group, kind)


def quantized_weights(
    spec: DecoderSpec,
    weights: ReferenceWeights,
    format_name: str,
    *,
    others: Iterable[tuple[str, str]] = (),
    exact: bool = False,
) -> ReferenceWeights:
    """The weights with every linear layer of every block packed into one format.

    Args:
        others: (module path, format) of further matrices, such as embedding and head.
    """
    targets = {x.name: format_name for layer in spec.layers for x in layer.linears}
    targets.update(others)
    matrices = {
        name: quantized_matrix(targets[name], matrix.values, exact=exact)
        if name in targets
        else matrix
        for name, matrix in weights.matrices.items()
    }
    return ReferenceWeights(matrices, weights.vectors)
