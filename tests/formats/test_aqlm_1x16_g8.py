"""aqlm_1x16_g8: contract, golden bytes."""

from __future__ import annotations

import struct

import numpy as np

from tests.support.codebook_contract import CodebookContract


class TestAqlm1By16G8(CodebookContract):
    name = "aqlm_1x16_g8"

    def test_golden_bytes(self) -> None:
        """Code 40000 in row 1, written out from the drawing."""
        codes = np.array([[[1], [2]], [[40000], [3]]], np.uint16)
        entries = np.zeros((1, 65536, 8), np.int32)
        entries[0, 40000] = [-127, 1, 2, 3, 4, 5, 6, 7]
        scales = self.spec.join(np.array([1, 0.25], np.float32), entries)
        expected = bytearray(8 * 65536 + 64 + 4 * 16 * 2)
        expected[8 * 40000 : 8 * 40000 + 8] = bytes([0x81, 1, 2, 3, 4, 5, 6, 7])
        expected[8 * 65536 : 8 * 65536 + 8] = struct.pack("<2f", 1, 0.25)
        expected[8 * 65536 + 64 : 8 * 65536 + 68] = struct.pack("<2H", 1, 40000)
        expected[8 * 65536 + 96 : 8 * 65536 + 100] = struct.pack("<2H", 2, 3)
        assert self.format.pack_codes(codes, scales, (2, 16)).tobytes() == bytes(expected)
        found = self.format.unpack(np.frombuffer(bytes(expected), np.uint8), (2, 16))
        np.testing.assert_array_equal(found[1, :8], np.array([-127, *range(1, 8)]) * 0.25)

    def test_bits_per_weight_of_a_large_matrix(self) -> None:
        assert self.format.bpw((4096, 4096)) == 2 + 32 / 4096 + 8 * 8 * 65536 / 4096**2
