"""int8: contract, golden bytes, the code that is never written."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from qh_runtime.errors import FormatError
from tests.support.contracts import Array, FormatContract


class TestInt8(FormatContract):
    name = "int8"

    def expected_nbytes(self, rows: int, cols: int) -> int:
        return ((rows + 15) // 16) * (((cols + 31) // 32) * 32 * 16 + 64)

    def weight_at(self, data: bytes, shape: tuple[int, int], row: int, col: int) -> float:
        padded = (shape[1] + 31) // 32 * 32
        tile = (row // 16) * (padded * 16 + 64)
        r, block, t = row % 16, col // 4, col % 4
        code = struct.unpack_from("<b", data, tile + block * 64 + 4 * r + t)[0]
        scale = struct.unpack_from("<f", data, tile + padded * 16 + 4 * r)[0]
        return float(np.float32(code) * np.float32(scale))

    def codes_and_scales(
        self, rng: np.random.Generator, shape: tuple[int, int]
    ) -> tuple[Array, Array]:
        codes = rng.integers(-127, 128, shape).astype(np.int8)
        return codes, rng.uniform(0.01, 2, shape[0]).astype(np.float32)

    def test_golden_bytes(self) -> None:
        codes = np.array([[1, -1, 127, -127, 5]], np.int8)
        buffer = self.format.pack_codes(codes, np.array([0.5], np.float32), (1, 5))
        expected = bytearray(8 * 64 + 64)
        expected[0:4] = bytes([0x01, 0xFF, 0x7F, 0x81])
        expected[64] = 5
        expected[512:516] = struct.pack("<f", 0.5)
        assert buffer.tobytes() == bytes(expected)

    def test_all_codes(self) -> None:
        codes = np.tile(np.arange(-127, 128, dtype=np.int8), (16, 1))
        ones = np.ones(16, np.float32)
        buffer = self.format.pack_codes(codes, ones, codes.shape)
        np.testing.assert_array_equal(self.format.unpack(buffer, codes.shape), codes)

    def test_largest_magnitude_is_exact_in_code_and_ties_go_to_even(self) -> None:
        weights = np.array([[127.0, -127.0, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32)
        codes, scales = self.format.quantize(weights)
        assert codes.tolist() == [[127, -127, 0, 2, 2, 0, -2]]
        assert scales.tolist() == [1.0]

    def test_minus_128_is_never_written_and_never_read(self) -> None:
        codes = np.zeros((16, 32), np.int8)
        codes[7, 9] = -128
        with pytest.raises(FormatError):
            self.format.pack_codes(codes, np.ones(16, np.float32), (16, 32))
        buffer = self.format.pack(np.zeros((16, 32), np.float32))
        buffer[100] = 0x80
        with pytest.raises(FormatError) as error:
            self.format.check(buffer, (16, 32))
        assert error.value.facts["found"] == -128

    @pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FC00000])
    def test_a_scale_that_is_not_finite_is_refused(self, bits: int) -> None:
        shape = (18, 32)
        buffer = self.format.pack(np.ones(shape, np.float32))
        tile = 32 * 16 + 64
        struct.pack_into("<I", buffer, tile + 32 * 16 + 4, bits)
        with pytest.raises(FormatError) as error:
            self.format.unpack(buffer, shape)
        assert error.value.facts["row"] == 17
