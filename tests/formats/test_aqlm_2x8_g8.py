"""aqlm_2x8_g8: contract, golden bytes."""

from __future__ import annotations

import struct

import numpy as np

from tests.support.codebook_contract import CodebookContract


class TestAqlm2By8G8(CodebookContract):
    name = "aqlm_2x8_g8"

    def test_golden_bytes(self) -> None:
        """Codes (0, 255) and (3, 128) of two groups, written out from the drawing."""
        codes = np.array([[[0, 255], [3, 128]], [[1, 2], [4, 5]]], np.uint8)
        entries = np.zeros((2, 256, 8), np.int32)
        entries[0, 3] = np.arange(8)
        entries[1, 128] = -2
        scales = self.spec.join(np.array([0.5, 2], np.float32), entries)
        expected = bytearray(64 + 8192 + 64 * 4 + 64 * 8)
        expected[0] = 7  # entry 7 of vector 3 is the largest
        for j in range(8):
            at = (j // 2 * 256 + 3) * 4 + j % 2 * 2
            expected[64 + at : 64 + at + 2] = struct.pack("<h", j)
            at = ((4 + j // 2) * 256 + 128) * 4 + j % 2 * 2
            expected[64 + at : 64 + at + 2] = struct.pack("<h", -2)
        expected[64 + 8192 : 64 + 8192 + 8] = struct.pack("<2f", 0.5, 2)
        for lookup, pair in enumerate([(0, 1), (255, 2), (3, 4), (128, 5)]):
            at = 64 + 8192 + 256 + 64 * lookup
            expected[at : at + 2] = bytes(pair)  # rows 0 and 1
        assert self.format.pack_codes(codes, scales, (2, 16)).tobytes() == bytes(expected)
        found = self.format.unpack(np.frombuffer(bytes(expected), np.uint8), (2, 16))
        np.testing.assert_array_equal(found[0], [0] * 8 + [0.5 * (j - 2) for j in range(8)])

    def test_bits_per_weight_of_a_large_matrix(self) -> None:
        assert self.format.bpw((4096, 4096)) == 2 + 32 / 4096 + 8 * (64 + 8192) / 4096**2
