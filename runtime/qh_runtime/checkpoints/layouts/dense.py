"""dense: `<name>.weight` holds the elements themselves, in float32, float16 or bfloat16."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qh_runtime.checkpoints.layouts.base import DenseWeights
from qh_runtime.checkpoints.reader import TensorInfo, TensorSource
from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import CheckpointError, UnsupportedTensorError
from qh_runtime.formats import bf16

__all__ = ["DENSE_FORMATS", "DenseLayout", "check_shape", "dense_matrix", "float_vector"]

# Container type -> weight format.
DENSE_FORMATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
# A tensor with one of these suffixes in place of ".weight" shows the scheme, whatever the config.
_SCHEMES = {
    "qweight": "GPTQ or AWQ",
    "codes": "AQLM",
    "weight_packed": "compressed-tensors",
    "Qidxs": "QuIP#",
    "trellis": "QTIP or EXL3",
}


class DenseLayout:
    """Every linear layer is dense."""

    @property
    def key(self) -> str:
        """See Layout."""
        return "dense"

    def format_of(self, source: TensorSource, name: str) -> str:
        """See Layout."""
        return dense_format(_weight(source, name))

    def tensors_of(self, source: TensorSource, name: str) -> tuple[str, ...]:
        """See Layout."""
        return (f"{name}.weight",)

    def check(self, source: TensorSource, name: str, shape: tuple[int, int]) -> None:
        """See Layout."""
        check_shape(_weight(source, name), shape)

    def linear(self, source: TensorSource, name: str, shape: tuple[int, int]) -> DenseWeights:
        """See Layout."""
        _weight(source, name)
        return dense_matrix(source, f"{name}.weight", shape)


def dense_format(info: TensorInfo) -> str:
    """The weight format of a dense tensor.

    Raises:
        UnsupportedTensorError: not a float type that is read. Facts: tensor, dtype.
    """
    if info.dtype not in DENSE_FORMATS:
        raise UnsupportedTensorError(
            f"{info.name}: type: expected one of {', '.join(sorted(DENSE_FORMATS))}, "
            f"found {info.dtype}",
            hint="choose a checkpoint in one of these types",
            tensor=info.name,
            dtype=info.dtype,
        )
    return DENSE_FORMATS[info.dtype]


def dense_matrix(source: TensorSource, tensor: str, shape: tuple[int, int]) -> DenseWeights:
    """A dense tensor by its full name.

    Raises:
        CheckpointError: missing, or another shape. Facts: tensor, expected, found.
        UnsupportedTensorError: not a float type that is read.
    """
    info = source.info(tensor)
    found = dense_format(info)
    check_shape(info, shape)
    return DenseWeights(found, source.read(tensor))


def float_vector(source: TensorSource, tensor: str, size: int) -> NDArray[np.float32]:
    """A 1-D float tensor (a norm or a bias) as finite float32 (size,).

    Raises:
        CheckpointError: missing, another shape, or a value that is not finite.
        UnsupportedTensorError: not a float type that is read.
    """
    info = source.info(tensor)
    found = dense_format(info)
    check_shape(info, (size,))
    raw = source.read(tensor)
    vector = bf16.bf16_to_f32(raw) if found == "bf16" else raw.astype(np.float32)
    if not np.isfinite(vector).all():
        raise CheckpointError(
            f"{tensor}: expected finite values, found "
            f"{vector[~np.isfinite(vector)][0]} at {int(np.argmin(np.isfinite(vector)))}",
            hint="the checkpoint is damaged; download it again",
            tensor=tensor,
        )
    return np.ascontiguousarray(vector, np.float32)


def check_shape(info: TensorInfo, expected: tuple[int, ...]) -> None:
    """Raise CheckpointError unless the tensor has this shape. Facts: tensor, expected, found."""
    if info.shape != expected:
        raise CheckpointError(
            f"{info.name}: shape: expected {list(expected)}, found {list(info.shape)}",
            hint="config.json and weights belong to different models",
            tensor=info.name,
            expected=expected,
            found=info.shape,
        )


def _weight(source: TensorSource, name: str) -> TensorInfo:
    """Info of `<name>.weight`; where it is absent, the error says which scheme is there instead."""
    if f"{name}.weight" not in source:
        for suffix, scheme in _SCHEMES.items():
            if f"{name}.{suffix}" in source:
                raise UnsupportedTensorError(
                    f"{name}.weight: expected, found {quoted(f'{name}.{suffix}')}, "
                    f"a layer quantized by {scheme}",
                    hint="choose a 16-bit or BitNet checkpoint of this model",
                    tensor=f"{name}.{suffix}",
                    dtype=source.info(f"{name}.{suffix}").dtype,
                )
    return source.info(f"{name}.weight")
