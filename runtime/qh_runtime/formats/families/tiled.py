"""Packed formats: the arithmetic of tiles, blocks and padding that int8, ternary and lut4 share.

A block gives each of 16 rows 4 bytes, so 4 neighbouring bytes of a row move as one 32-bit word:
packing is bit arithmetic on words followed by one transposition of (tile, row, block) words.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qh_runtime.formats.base import (
    BLOCK_BYTES,
    TILE_ROWS,
    Codes,
    Scales,
    Shape,
    WeightFormat,
)

__all__ = ["TiledFormat"]

Words = NDArray[np.uint32]


@dataclass(frozen=True)
class TiledFormat(WeightFormat):
    """A format of 16-row tiles. See base.py for the drawing.

    Attributes:
        block_columns: columns of one 64-byte block.
    """

    block_columns: int

    @abstractmethod
    def scale_lines(self, padded_columns: int) -> NDArray[np.intp]:
        """Which of a tile's 64-byte lines hold scales, in order; the others are its blocks."""

    @abstractmethod
    def _words(self, codes: Codes, padded: Shape) -> Words:
        """Stored words (padded rows, blocks) of codes (N, K), with padding of weight zero."""

    @abstractmethod
    def _codes(self, words: Words) -> Codes:
        """Codes (rows, padded columns) of stored words (rows, blocks)."""

    @abstractmethod
    def _put_scales(self, scales: Scales, section: NDArray[np.uint8], shape: Shape) -> None:
        """Write scales to the zeroed section (tiles, scale_bytes)."""

    @abstractmethod
    def _get_scales(self, section: NDArray[np.uint8], shape: Shape) -> Scales:
        """Return the scales of a section (tiles, scale_bytes), padding removed."""

    @abstractmethod
    def _check_words(self, blocks: Words, shape: Shape) -> None:
        """Raise FormatError if blocks (tiles, blocks, 16) hold a code that is never written."""

    def padded_shape(self, shape: Shape) -> Shape:
        """(rows, columns) with padding."""
        self.check_shape(shape)
        return (
            -(-shape[0] // TILE_ROWS) * TILE_ROWS,
            -(-shape[1] // self.column_unit) * self.column_unit,
        )

    def tile_bytes(self, columns: int) -> int:
        """Bytes of one tile of 16 rows of this many columns (unpadded); a multiple of 64."""
        padded = -(-columns // self.column_unit) * self.column_unit
        return (padded // self.block_columns + len(self.scale_lines(padded))) * BLOCK_BYTES

    def nbytes(self, shape: Shape) -> int:
        rows, _ = self.padded_shape(shape)
        return rows // TILE_ROWS * self.tile_bytes(shape[1])

    def _pack(self, codes: Codes, scales: Scales, shape: Shape, out: NDArray[np.uint8]) -> None:
        rows, cols = self.padded_shape(shape)
        lines, of_scales, of_blocks = self._lines(out, shape)
        words = self._words(codes, (rows, cols))
        tiled = words.reshape(rows // TILE_ROWS, TILE_ROWS, cols // self.block_columns)
        lines[:, of_blocks] = tiled.transpose(0, 2, 1)
        section = np.zeros((len(lines), len(of_scales) * BLOCK_BYTES), np.uint8)
        self._put_scales(scales, section, shape)
        lines[:, of_scales] = section.view(np.dtype("<u4")).reshape(len(lines), -1, TILE_ROWS)

    def _unpack_codes(self, buffer: NDArray[np.uint8], shape: Shape) -> tuple[Codes, Scales]:
        rows, cols = self.padded_shape(shape)
        blocks, section = self._sections(buffer, shape)
        words = np.ascontiguousarray(blocks.transpose(0, 2, 1))
        codes = self._codes(words.reshape(rows, cols // self.block_columns))
        return (
            np.ascontiguousarray(codes[: shape[0], : shape[1]]),
            self._get_scales(section, shape),
        )

    def _check_bytes(self, buffer: NDArray[np.uint8], shape: Shape) -> None:
        blocks, section = self._sections(buffer, shape)
        self._check_words(blocks, shape)
        scales = self._get_scales(section, shape)
        if not np.isfinite(scales).all():
            row = int(np.argwhere(~np.isfinite(scales))[0][0])
            raise self._error("scale", "finite", f"not finite in row {row}", row=row)

    def _lines(
        self, buffer: NDArray[np.uint8], shape: Shape
    ) -> tuple[Words, NDArray[np.intp], NDArray[np.intp] | slice]:
        """A view of words (tiles, lines, 16), and which lines hold scales and blocks."""
        rows, cols = self.padded_shape(shape)
        of_scales = self.scale_lines(cols)
        n_blocks = cols // self.block_columns
        lines = buffer.view(np.dtype("<u4")).reshape(rows // TILE_ROWS, -1, TILE_ROWS)
        if len(of_scales) == 1 and of_scales[0] == n_blocks:
            return lines, of_scales, slice(0, n_blocks)
        of_blocks = np.delete(np.arange(n_blocks + len(of_scales)), of_scales)
        return lines, of_scales, of_blocks

    def _sections(self, buffer: NDArray[np.uint8], shape: Shape) -> tuple[Words, NDArray[np.uint8]]:
        """Words (tiles, blocks, 16) and a copy of the scale bytes (tiles, 64 * scale lines)."""
        lines, _, of_blocks = self._lines(_aligned(buffer), shape)
        return lines[:, of_blocks], self._scale_section(buffer, shape)

    def _scale_section(self, buffer: NDArray[np.uint8], shape: Shape) -> NDArray[np.uint8]:
        """A copy of the scale bytes (tiles, 64 * scale lines)."""
        lines, of_scales, _ = self._lines(_aligned(buffer), shape)
        section = np.ascontiguousarray(lines[:, of_scales]).view(np.uint8)
        return section.reshape(len(lines), -1)


def _aligned(buffer: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return buffer.copy() if buffer.ctypes.data % 4 else buffer


def pad_codes(codes: Codes, padded: Shape, fill: int) -> Codes:
    """Return codes (N, K) as contiguous (padded) with `fill` in the new places."""
    if codes.shape == padded:
        return np.ascontiguousarray(codes)
    out = np.full(padded, fill, codes.dtype)
    out[: codes.shape[0], : codes.shape[1]] = codes
    return out


class RowScales:
    """Mixin for formats whose tile ends in 16 float32 row scales: int8 and ternary.

    Scales are float32 (N,), or one for the tensor.
    """

    def coded(self, codes: Codes, scales: Scales) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """The codes, and the scales (N, 1)."""
        by_row = np.asarray(scales, np.float32).reshape(-1, 1)
        return codes, np.array(np.broadcast_to(by_row, (len(codes), 1)))

    # Of TiledFormat, which the class that mixes this in inherits too.
    block_columns: int

    def scale_lines(self, padded_columns: int) -> NDArray[np.intp]:
        """The last one: 16 float32."""
        return np.array([padded_columns // self.block_columns])

    def _put_scales(self, scales: Scales, section: NDArray[np.uint8], shape: Shape) -> None:
        rows = np.zeros(len(section) * TILE_ROWS, np.dtype("<f4"))
        rows[: shape[0]] = scales
        section[...] = rows.view(np.uint8).reshape(section.shape)

    def _get_scales(self, section: NDArray[np.uint8], shape: Shape) -> Scales:
        rows = np.ascontiguousarray(section).reshape(-1).view(np.dtype("<f4"))
        return rows[: shape[0]].astype(np.float32)
