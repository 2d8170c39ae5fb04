"""Dense formats: row-major elements, nothing else; packing is a cast and a matrix maps as it is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from qh_runtime.formats.base import Codes, Scales, Shape, WeightFormat

__all__ = ["DenseFormat"]


@dataclass(frozen=True)
class DenseFormat(WeightFormat):
    """A dense format: codes are the elements as stored, scales are empty.

    Attributes:
        storage: little-endian dtype of one element; bfloat16 is stored as uint16.
        relative_error: largest error of the cast from float32, relative, for normal values.
        absolute_error: the same for values below the format's smallest normal one.
        largest: the largest finite value; what rounds beyond it is refused.
    """

    storage: str
    relative_error: float
    absolute_error: float
    largest: float

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """NumPy type of one stored element."""
        return np.dtype(self.storage)

    @abstractmethod
    def encode(self, weights: NDArray[np.float32]) -> Codes:
        """Round float32 to the stored type, half to even."""

    @abstractmethod
    def decode(self, elements: Codes) -> NDArray[np.float32]:
        """Return stored elements as float32, exactly."""

    def nbytes(self, shape: Shape) -> int:
        self.check_shape(shape)
        return shape[0] * shape[1] * self.dtype.itemsize

    def quantize(self, weights: NDArray[np.float32]) -> tuple[Codes, Scales]:
        self.check_weights(weights)
        worst = float(max(weights.max(), -weights.min()))
        if not worst <= self.largest:  # NaN fails this too
            raise self._error("weights", f"finite and at most {self.largest:g}", f"{worst}")
        return self.encode(weights), np.empty(0, np.float32)

    def dequantize(self, codes: Codes, scales: Scales) -> NDArray[np.float32]:
        return self.decode(codes)

    def error_bound(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        bound = np.abs(weights) * np.float32(self.relative_error)
        return np.asarray(bound + np.float32(self.absolute_error), np.float32)

    def _pack(self, codes: Codes, scales: Scales, shape: Shape, out: NDArray[np.uint8]) -> None:
        out.view(self.dtype).reshape(shape)[...] = codes

    def _unpack_codes(self, buffer: NDArray[np.uint8], shape: Shape) -> tuple[Codes, Scales]:
        return _as(buffer, self.dtype).reshape(shape), np.empty(0, np.float32)

    def _check_codes(self, codes: Codes, scales: Scales, shape: Shape) -> tuple[Codes, Scales]:
        if codes.shape != shape or codes.dtype != self.dtype:
            raise self._error(
                "elements", f"{self.dtype} {shape}", f"{codes.dtype} {codes.shape}", shape=shape
            )
        return codes, scales

    def _check_bytes(self, buffer: NDArray[np.uint8], shape: Shape) -> None:
        # Every bit pattern is an element; values that are not finite show as non-finite logits.
        return


def _as(buffer: NDArray[np.uint8], dtype: DTypeLike) -> Codes:
    """A view of the bytes as dtype; a copy where the buffer is not aligned to the element."""
    dtype = np.dtype(dtype)
    if buffer.ctypes.data % dtype.itemsize:
        buffer = buffer.copy()
    return buffer.view(dtype)
