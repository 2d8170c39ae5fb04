"""WeightFormat, and the layout that every packed format shares.

A matrix W (out_features N, in_features K) is one contiguous byte buffer. All values little-endian.

Dense formats (f32, f16, bf16): row-major, N * K elements. Nothing else.

Packed formats cut W into tiles of 16 rows (TILE_ROWS); N is padded to a multiple of 16 with rows
whose codes and scales are zero, K to a multiple of the format's column unit with codes whose weight
is zero. Tiles follow each other; a tile is a multiple of 64 bytes, so with a 64-byte-aligned buffer
every block load is aligned and one thread reads its tiles front to back.

Inside a tile, a block is 64 bytes: byte 4 * r + t belongs to row r (0..15) and sub-column t (0..3).

    int8     column unit 32    tile = blocks of 4 columns | 16 x f32 row scales (64 bytes)
             block b, byte 4r+t = int8 code of column 4b + t            w = scale[r] * code
    ternary  column unit 16    tile = blocks of 16 columns | 16 x f32 row scales (64 bytes)
             block b, byte 4r+t, bits 2i..2i+1 = code + 1 of column 16b + 4i + t, i = 0..3
             codes -1, 0, 1; field value 3 is never written            w = scale[r] * code
    int4_gG  column unit max(G, 32)   tile = spans of 2 groups: group scales | blocks of 8 columns
             group scales: f16 [2][16], the second zero where a row ends with the first group
             block b, byte 4r+t: low nibble = q of column 8b + t, high nibble = of column 8b + 4 + t
             q = 0..15                                       w = scale[r, k // G] * (q - 8)

nf4, mxfp4 and nvfp4 have the blocks of int4; their files say what codes and scales mean.

The codebook family (aqlm_*) is laid out by itself, codebooks first: families/codebook.py.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qh_runtime.errors import FormatError

__all__ = [
    "BLOCK_BYTES",
    "MAX_WEIGHTS",
    "TILE_ROWS",
    "Codes",
    "Scales",
    "Shape",
    "WeightFormat",
    "get",
    "names",
]

# Rows per tile: one 512-bit register of int32 accumulators (kTileRows in kernel_table.h).
TILE_ROWS = 16
# Bytes per block, and the unit that every tile is a multiple of: one cache line.
BLOCK_BYTES = 64
# Most weights in one matrix; keeps every byte count below 2**53 in any language.
MAX_WEIGHTS = 1 << 48

_NOT_FORMATS = frozenset({"base", "families"})

Shape = tuple[int, int]
Codes = NDArray[Any]
Scales = NDArray[Any]


@dataclass(frozen=True)
class WeightFormat(ABC):
    """One way to hold a weight matrix (out_features N, in_features K) as bytes.

    Packed bytes of a matrix are the packed bytes of its row chunks one after the other, as long as
    every chunk but the last has a multiple of TILE_ROWS rows; that is how large matrices are packed
    with little memory. Formats without row_chunks are packed at once.

    Attributes:
        name: the module name, and the name in kernels/src/formats.h.
        family: the SIMD algorithm: "dense", "int8", "ternary", "lut4" or "codebook".
        weight_bits: bits of one code, scales not counted.
        group_size: inputs that share one stored scale; 0 is a whole row (or no scale: dense).
        column_unit: K is padded to a multiple of this.
        source: the paper or the definition.
        row_chunks: whether packed row chunks follow each other, see above.
    """

    name: str
    family: str
    weight_bits: float
    group_size: int
    column_unit: int
    source: str
    row_chunks: bool = field(default=True, kw_only=True)

    # What every format says about itself.

    @abstractmethod
    def nbytes(self, shape: Shape) -> int:
        """Bytes of a packed matrix of this (N, K) shape.

        Raises:
            FormatError: a dimension below 1, or more than MAX_WEIGHTS weights.
        """

    @abstractmethod
    def quantize(self, weights: NDArray[np.float32]) -> tuple[Codes, Scales]:
        """Return (codes (N, K), scales) of float32 weights (N, K); rows are independent.

        Raises:
            FormatError: a weight is not finite, or does not fit the scale's type.
        """

    @abstractmethod
    def dequantize(self, codes: Codes, scales: Scales) -> NDArray[np.float32]:
        """Return the float32 weights (N, K) that (codes, scales) stand for."""

    @abstractmethod
    def error_bound(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """Largest abs error of quantize then dequantize; float32, broadcasts against (N, K)."""

    @abstractmethod
    def _pack(self, codes: Codes, scales: Scales, shape: Shape, out: NDArray[np.uint8]) -> None:
        """Write the packed bytes of checked codes and scales to out (nbytes(shape),)."""

    @abstractmethod
    def _unpack_codes(self, buffer: NDArray[np.uint8], shape: Shape) -> tuple[Codes, Scales]:
        """Return (codes, scales) of a buffer of the right size, without padding."""

    @abstractmethod
    def _check_codes(self, codes: Codes, scales: Scales, shape: Shape) -> tuple[Codes, Scales]:
        """Return codes and scales in their stored types and shapes, or raise FormatError."""

    @abstractmethod
    def _check_bytes(self, buffer: NDArray[np.uint8], shape: Shape) -> None:
        """Raise FormatError if a buffer of the right size holds what is never written."""

    def coded(self, codes: Codes, scales: Scales) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """What products with int8 activations are made of: integers (N, K), scales (N, groups).

        Dense formats have no such products.
        """
        raise self._error("products with quantized activations", "a packed format", self.name)

    def factors(
        self, codes: Codes, scales: Scales
    ) -> tuple[NDArray[np.int8] | NDArray[np.float32], NDArray[np.float32]]:
        """What products with float32 activations are made of: `coded`, or values in its place."""
        return self.coded(codes, scales)

    # What follows from that.

    def bpw(self, shape: Shape) -> float:
        """Bits per weight of a matrix of this shape, with scales and padding."""
        return self.nbytes(shape) * 8 / (shape[0] * shape[1])

    def pack_codes(
        self,
        codes: Codes,
        scales: Scales,
        shape: Shape,
        out: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Return the packed bytes of codes (N, K) and their scales.

        Args:
            codes: (N, K) in the format's code type.
            scales: in the shape that `quantize` returns.
            shape: (N, K).
            out: uint8 (nbytes(shape),), C-contiguous, to write to; None allocates.

        Raises:
            FormatError: a shape, type or value that the format cannot hold.
        """
        size = self.nbytes(shape)
        codes, scales = self._check_codes(codes, scales, shape)
        if out is None:
            out = np.empty(size, np.uint8)
        elif out.shape != (size,) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise self._error("output buffer", f"uint8 ({size},)", f"{out.dtype} {out.shape}")
        self._pack(codes, scales, shape, out)
        return out

    def pack(self, weights: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Quantize float32 weights (N, K) and return their packed bytes."""
        codes, scales = self.quantize(weights)
        return self.pack_codes(codes, scales, (weights.shape[0], weights.shape[1]))

    def check(self, buffer: NDArray[np.uint8], shape: Shape) -> None:
        """Return normally if buffer is a packed matrix of this shape that `pack_codes` could write.

        Raises:
            FormatError: wrong size, a code that is never written, or a scale that is not finite.
        """
        size = self.nbytes(shape)
        if buffer.dtype != np.uint8 or buffer.shape != (size,):
            raise self._error(
                "packed bytes", f"uint8 ({size},)", f"{buffer.dtype} {buffer.shape}", shape=shape
            )
        self._check_bytes(buffer, shape)

    def unpack_codes(self, buffer: NDArray[np.uint8], shape: Shape) -> tuple[Codes, Scales]:
        """Return (codes (N, K), scales) of checked packed bytes. Raises FormatError."""
        self.check(buffer, shape)
        return self._unpack_codes(buffer, shape)

    def unpack(self, buffer: NDArray[np.uint8], shape: Shape) -> NDArray[np.float32]:
        """Return weights (N, K) float32, row-major, of packed bytes. Raises FormatError."""
        return self.dequantize(*self.unpack_codes(buffer, shape))

    # Shared checks.

    def check_shape(self, shape: Shape) -> None:
        """Raise FormatError unless 1 <= N, 1 <= K and N * K <= MAX_WEIGHTS."""
        rows, cols = shape
        if rows < 1 or cols < 1 or rows * cols > MAX_WEIGHTS:
            raise self._error("matrix shape", f"1 <= N, 1 <= K, N * K <= {MAX_WEIGHTS}", shape)

    def check_weights(self, weights: NDArray[np.float32]) -> None:
        """Raise FormatError unless weights are a finite float32 matrix."""
        if weights.ndim != 2 or weights.dtype != np.float32:
            raise self._error("weights", "float32 (N, K)", f"{weights.dtype} {weights.shape}")
        self.check_shape((weights.shape[0], weights.shape[1]))

    def _error(self, what: str, expected: object, found: object, **facts: Any) -> FormatError:
        return FormatError(
            f"{self.name}: {what}: expected {expected}, found {found}",
            format=self.name,
            expected=expected,
            found=found,
            **facts,
        )


@cache
def names() -> tuple[str, ...]:
    """Names of all weight formats, sorted; each is a module of this folder."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(sorted(name for name in found if name not in _NOT_FORMATS))


@cache
def get(name: str) -> WeightFormat:
    """Return the weight format of this name.

    Raises:
        FormatError: no format has this name. Facts: format, known.
    """
    if name not in names():
        raise FormatError(
            f"weight format {name!r}: expected one of {', '.join(names())}",
            hint="choose one of these",
            format=name,
            known=names(),
        )
    module = importlib.import_module(f"qh_runtime.formats.{name}")
    found: WeightFormat = module.FORMAT
    return found
