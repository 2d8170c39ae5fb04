"""Writes GGUF files of random weights, to have llama.cpp run a shape in its own formats.

Source: ggml, docs/gguf.md (container), ggml-common.h (sizes of blocks). Random bytes are valid
codes of every type here; only the float16 scales of each block are set, so that values are small.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

__all__ = ["QUANT_TYPES", "GgufTensor", "QuantType", "write_gguf"]

_MAGIC = b"GGUF"
_VERSION = 3
_ALIGNMENT = 32
# Value types of the metadata.
_UINT32, _FLOAT32, _STRING = 4, 6, 8
# Blocks that are drawn; repeated until a tensor is full.
_DRAWN_BYTES = 1 << 20
_SCALE = np.float16(0.01)

Value = int | float | str


@dataclass(frozen=True)
class QuantType:
    """A tensor type of ggml.

    Attributes:
        number: in the file.
        weights, nbytes: of one block.
        scales: where in a block float16 scales are.
        codes: the values that bytes of codes may have; None is all.
    """

    name: str
    number: int
    weights: int
    nbytes: int
    scales: tuple[int, ...]
    codes: tuple[int, ...] | None = None

    def size(self, n_weights: int) -> int:
        """Bytes of a tensor; n_weights is a multiple of the block's."""
        return n_weights // self.weights * self.nbytes


# Four fields of two bits, each 0, 1 or 2.
_TERNARY_BYTES = tuple(
    a | b << 2 | c << 4 | d << 6
    for a in range(3)
    for b in range(3)
    for c in range(3)
    for d in range(3)
)

QUANT_TYPES: Mapping[str, QuantType] = {
    x.name: x
    for x in (
        QuantType("F32", 0, 1, 4, ()),
        QuantType("Q4_0", 2, 32, 18, (0,)),
        QuantType("Q2_K", 10, 256, 84, (80, 82)),
        QuantType("Q3_K", 11, 256, 110, (108,)),
        QuantType("Q4_K", 12, 256, 144, (0, 2)),
        QuantType("Q5_K", 13, 256, 176, (0, 2)),
        QuantType("Q6_K", 14, 256, 210, (208,)),
        QuantType("IQ2_XXS", 16, 256, 66, (0,)),
        QuantType("TQ1_0", 34, 256, 54, (52,)),
        QuantType("TQ2_0", 35, 256, 66, (64,), _TERNARY_BYTES),
    )
}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: quantized weights (rows, cols), or, with 0 rows, the ones (cols,) of a norm."""

    name: str
    quant: str
    rows: int
    cols: int

    @property
    def nbytes(self) -> int:
        """Size in the file without padding."""
        return QUANT_TYPES[self.quant].size(max(1, self.rows) * self.cols)


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Sequence[GgufTensor]) -> None:
    """Write a file; metadata values are uint32, float32 or text.

    Raises:
        ValueError: a row is not a whole number of blocks.
        OSError: it cannot be written.
    """
    dice = np.random.default_rng(20261123)
    with path.open("wb") as file:
        file.write(_MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_text(key) + _value(value))
        offset = 0
        for tensor in tensors:
            quant = QUANT_TYPES[tensor.quant]
            if tensor.cols % quant.weights:
                raise ValueError(
                    f"{tensor.name}: {quant.name} needs columns in multiples of {quant.weights}, "
                    f"found {tensor.cols}"
                )
            # The fastest dimension comes first.
            dims = [tensor.cols, tensor.rows] if tensor.rows else [tensor.cols]
            file.write(_text(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
            file.write(struct.pack("<IQ", quant.number, offset))
            offset += _padded(tensor.nbytes)
        file.write(bytes(-file.tell() % _ALIGNMENT))
        drawn: dict[str, NDArray[np.uint8]] = {}
        for tensor in tensors:
            if tensor.quant not in drawn:
                drawn[tensor.quant] = _blocks(QUANT_TYPES[tensor.quant], dice)
            _fill(file, drawn[tensor.quant], tensor.nbytes)
            file.write(bytes(_padded(tensor.nbytes) - tensor.nbytes))


def _blocks(quant: QuantType, dice: np.random.Generator) -> NDArray[np.uint8]:
    """Some whole blocks, as bytes."""
    if quant.name == "F32":
        return np.ones(_DRAWN_BYTES // 4, "<f4").view(np.uint8)
    count = _DRAWN_BYTES // quant.nbytes
    blocks = dice.integers(0, 256, (count, quant.nbytes), np.uint8)
    if quant.codes is not None:
        blocks = np.array(quant.codes, np.uint8)[blocks % len(quant.codes)]
    scale = np.frombuffer(_SCALE.astype("<f2").tobytes(), np.uint8)
    for at in quant.scales:
        blocks[:, at : at + 2] = scale
    return blocks.reshape(-1)


def _fill(file: BinaryIO, block: NDArray[np.uint8], nbytes: int) -> None:
    for piece in _pieces(nbytes, block.nbytes):
        file.write(block[:piece].data)


def _pieces(total: int, size: int) -> Iterator[int]:
    while total > 0:
        yield min(total, size)
        total -= size


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    return struct.pack("<If", _FLOAT32, value)
