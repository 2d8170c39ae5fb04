"""KvHead: keys and values of one head, as the KV cache holds them; the layout is drawn here.

Blocks of 64 positions follow each other, so that attention reads memory front to back:

    keys | values | scales of the keys, scales of the values (int8 only)

    keys, f16 and f32:    [value] [position]
    keys, int8:           [value // 4] [position] [value % 4]
    values, f16 and f32:  [value // 64] [position] [value % 64]
    values, int8:         [value // 64] [position // 4] [value % 64] [position % 4]

A last slab of less than 64 values is as narrow as it has values.

int8 has one float32 scale for each position, of keys and of values: x = code * scale, with
scale = max|x| / 127 and code = round_half_even(x / scale) in -127..127 (0 where scale is 0). The
error is at most scale * (1/2 + 2**-16) where scale is a normal number. What is not finite has codes
0 and scale NaN. Where head_dim is not a multiple of 4, int8 keys are padded to one.

The scales take 8 bytes beside the 2 * head_dim of a position: int8 takes 0.516 of the bytes of f16
at head_dim 128, and 0.531 at 64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = ["KV_BLOCK", "KV_TYPES", "KvHead", "KvType", "kv_block_bytes"]

KvType = Literal["f16", "f32", "int8"]
KV_TYPES: tuple[KvType, ...] = get_args(KvType)

# kKvBlock of kernel_table.h and kValueSlab of core/kv_layout.h.
KV_BLOCK = 64
_SLAB = 64

_DTYPES: dict[KvType, type[np.generic]] = {"f16": np.float16, "f32": np.float32, "int8": np.int8}


def kv_block_bytes(kv_type: KvType, head_dim: int) -> int:
    """Bytes of KV_BLOCK positions of one head."""
    scales = 2 * 4 if kv_type == "int8" else 0
    values = _key_values(kv_type, head_dim) + head_dim
    return KV_BLOCK * (values * np.dtype(_DTYPES[kv_type]).itemsize + scales)


@dataclass(frozen=True)
class KvHead:
    """The bytes of one head.

    Attributes:
        data: uint8, whole blocks as drawn above.
    """

    kv_type: KvType
    head_dim: int
    data: NDArray[np.uint8]

    @classmethod
    def empty(cls, kv_type: KvType, head_dim: int, positions: int) -> KvHead:
        """Room for at least so many positions; all bits are set (NaN, code -1)."""
        n_bytes = -(-positions // KV_BLOCK) * kv_block_bytes(kv_type, head_dim)
        return cls(kv_type, head_dim, np.full(n_bytes, 0xFF, np.uint8))

    def stored_keys(self) -> NDArray[Any]:
        """Keys as they are stored: float16, float32 or int8 codes, (positions, head_dim)."""
        values = _key_values(self.kv_type, self.head_dim)
        blocks = self._part(0, values)
        if self.kv_type == "int8":
            quads = blocks.reshape(-1, values // 4, KV_BLOCK, 4).transpose(0, 2, 1, 3)
            return quads.reshape(-1, values)[:, : self.head_dim]
        return blocks.reshape(-1, values, KV_BLOCK).transpose(0, 2, 1).reshape(-1, values)

    def stored_values(self) -> NDArray[Any]:
        """Values as they are stored: float16, float32 or int8 codes, (positions, head_dim)."""
        first = _key_values(self.kv_type, self.head_dim)
        slabs = []
        for begin in range(0, self.head_dim, _SLAB):
            width = min(_SLAB, self.head_dim - begin)
            part = self._part(first + begin, width)
            if self.kv_type == "int8":
                part = part.reshape(-1, width, 4).transpose(0, 2, 1)
            slabs.append(part.reshape(-1, width))
        return np.concatenate(slabs, axis=1)

    def scales(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scales of keys and of values of int8, each float32 (positions,)."""
        blocks = self.data.reshape(-1, kv_block_bytes(self.kv_type, self.head_dim))
        both = blocks[:, -2 * 4 * KV_BLOCK :].copy().view(np.float32)
        return both[:, :KV_BLOCK].reshape(-1), both[:, KV_BLOCK:].reshape(-1)

    def keys(self) -> NDArray[np.float32]:
        """The numbers that the stored keys stand for, float32 (positions, head_dim)."""
        return self._floats(self.stored_keys(), 0)

    def values(self) -> NDArray[np.float32]:
        """The numbers that the stored values stand for, float32 (positions, head_dim)."""
        return self._floats(self.stored_values(), 1)

    def _part(self, first: int, count: int) -> NDArray[Any]:
        """Elements first * KV_BLOCK .. (first + count) * KV_BLOCK - 1 of every block."""
        dtype = np.dtype(_DTYPES[self.kv_type])
        blocks = self.data.reshape(-1, kv_block_bytes(self.kv_type, self.head_dim))
        begin, end = (x * KV_BLOCK * dtype.itemsize for x in (first, first + count))
        return blocks[:, begin:end].copy().view(dtype)

    def _floats(self, stored: NDArray[Any], which: int) -> NDArray[np.float32]:
        floats: NDArray[np.float32] = stored.astype(np.float32)
        return floats * self.scales()[which][:, None] if self.kv_type == "int8" else floats


def _key_values(kv_type: KvType, head_dim: int) -> int:
    return -(-head_dim // 4) * 4 if kv_type == "int8" else head_dim
