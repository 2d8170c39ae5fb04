"""f16: contract, all bit patterns, the range that is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from qh_runtime.errors import FormatError
from tests.support.dense_contract import DenseContract


class TestF16(DenseContract):
    name = "f16"
    element_bytes = 2

    def decode(self, element: bytes) -> float:
        return float(struct.unpack("<e", element)[0])

    def test_golden_bytes(self) -> None:
        assert self.format.pack(np.array([[1.0, -2.5]], np.float32)).tobytes() == bytes.fromhex(
            "003c 00c1"
        )

    def test_all_finite_bit_patterns_survive(self) -> None:
        patterns = np.arange(65536, dtype=np.uint16).view(np.float16)
        finite = patterns[np.isfinite(patterns)].reshape(1, -1)
        codes, _ = self.format.quantize(finite.astype(np.float32))
        np.testing.assert_array_equal(codes.view(np.uint16), finite.view(np.uint16))

    def test_what_is_too_large_is_refused(self) -> None:
        self.format.quantize(np.full((1, 1), 65504, np.float32))
        with pytest.raises(FormatError):
            self.format.quantize(np.full((1, 1), 65520, np.float32))
