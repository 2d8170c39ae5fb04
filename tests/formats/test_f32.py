"""f32: contract, and exactness of every kind of value."""

from __future__ import annotations

import struct

import numpy as np

from tests.support.dense_contract import DenseContract


class TestF32(DenseContract):
    name = "f32"
    element_bytes = 4

    def decode(self, element: bytes) -> float:
        return float(struct.unpack("<f", element)[0])

    def test_golden_bytes(self) -> None:
        assert self.format.pack(np.array([[1.0, -2.5]], np.float32)).tobytes() == bytes.fromhex(
            "0000803f 000020c0"
        )

    def test_is_exact(self) -> None:
        info = np.finfo(np.float32)
        weights = np.array([[info.max, -info.max, info.tiny, info.smallest_subnormal]], np.float32)
        found = self.format.unpack(self.format.pack(weights), weights.shape)
        np.testing.assert_array_equal(found, weights)
