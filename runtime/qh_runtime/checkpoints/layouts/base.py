"""What a layout returns for a linear layer, and the protocol of layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from qh_runtime.checkpoints.reader import TensorSource

__all__ = ["CodedWeights", "DenseWeights", "Layout", "LinearWeights"]


@dataclass(frozen=True)
class DenseWeights:
    """Elements of a dense format, as stored.

    Attributes:
        format: "f32", "f16" or "bf16".
        elements: (out_features, in_features), row-major, in that format's stored type; usually
            mapped, perhaps unaligned.
    """

    format: str
    elements: NDArray[Any]


@dataclass(frozen=True)
class CodedWeights:
    """Codes and scales of a packed weight format, in the types of its `quantize`."""

    format: str
    codes: NDArray[Any]
    scales: NDArray[Any]


LinearWeights = DenseWeights | CodedWeights


class Layout(Protocol):
    """How a checkpoint stores linear layers. Arguments `name` are module paths."""

    @property
    def key(self) -> str:
        """Names the layout and every setting that changes what its tensors mean."""

    def format_of(self, source: TensorSource, name: str) -> str:
        """The weight format that the layer's tensors stand for, without reading their data.

        Raises:
            CheckpointError: a tensor is missing or of a type that is not read.
        """

    def tensors_of(self, source: TensorSource, name: str) -> tuple[str, ...]:
        """Names of the tensors that `linear` reads."""

    def check(self, source: TensorSource, name: str, shape: tuple[int, int]) -> None:
        """Return normally if the layer's tensors have the shapes that `linear` needs.

        Raises:
            CheckpointError: facts tensor, expected, found.
        """

    def linear(self, source: TensorSource, name: str, shape: tuple[int, int]) -> LinearWeights:
        """The weights (out_features, in_features) of a linear layer; its bias is not included.

        Raises:
            CheckpointError: a tensor is missing, or has another type, shape or content.
        """
