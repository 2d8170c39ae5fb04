"""ternary5: contract, golden bytes, the bytes that are never written, the same codes as ternary."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest

from qh_runtime import formats
from qh_runtime.errors import FormatError
from tests.support.contracts import Array, FormatContract

_FACTORS = (1, 3, 9, 27, 82)


class TestTernary5(FormatContract):
    name = "ternary5"

    def expected_nbytes(self, rows: int, cols: int) -> int:
        return ((rows + 15) // 16) * (((cols + 19) // 20) * 64 + 64)

    def weight_at(self, data: bytes, shape: tuple[int, int], row: int, col: int) -> float:
        blocks = (shape[1] + 19) // 20
        tile = (row // 16) * (blocks * 64 + 64)
        r, block, i, t = row % 16, col // 20, col % 20 // 4, col % 4
        byte = data[tile + block * 64 + 4 * r + t]
        top = byte // 82
        code = (top if i == 4 else (byte - 82 * top) // 3**i % 3) - 1
        scale = struct.unpack_from("<f", data, tile + blocks * 64 + 4 * r)[0]
        return float(np.float32(code) * np.float32(scale))

    def codes_and_scales(
        self, rng: np.random.Generator, shape: tuple[int, int]
    ) -> tuple[Array, Array]:
        codes = rng.integers(-1, 2, shape).astype(np.int8)
        return codes, rng.uniform(0.01, 2, shape[0]).astype(np.float32)

    def test_golden_bytes(self) -> None:
        # Columns 0, 4, 8, 12, 16 share byte 0: codes -1, 1, 0, 1, -1 are digits 0, 2, 1, 2, 0.
        codes = np.zeros((1, 21), np.int8)
        codes[0, [0, 4, 8, 12, 16]] = [-1, 1, 0, 1, -1]
        codes[0, 20] = 1
        buffer = self.format.pack_codes(codes, np.asarray(2.0, np.float32), (1, 21))
        zero = sum(_FACTORS)
        expected = bytearray(bytes([zero]) * 128 + bytes(64))
        expected[0] = 2 * 3 + 9 + 2 * 27
        expected[64] = zero + 1
        expected[128:132] = struct.pack("<f", 2.0)
        assert buffer.tobytes() == bytes(expected)

    def test_every_byte_that_is_written_and_no_other(self) -> None:
        shape = (16, 40)
        legal = {
            sum(f * d for f, d in zip(_FACTORS, digits, strict=True)): digits
            for digits in itertools.product(range(3), repeat=5)
        }
        assert len(legal) == 243
        for byte in range(256):
            buffer = self.format.pack(np.zeros(shape, np.float32))
            buffer[:128] = byte
            if byte not in legal:
                with pytest.raises(FormatError) as error:
                    self.format.check(buffer, shape)
                assert error.value.facts["found"] == byte
                continue
            codes, _ = self.format.unpack_codes(buffer, shape)
            np.testing.assert_array_equal(codes[3] + 1, np.repeat(legal[byte] * 2, 4))

    def test_a_bad_byte_is_found_in_its_row(self) -> None:
        shape = (32, 40)
        buffer = self.format.pack(np.zeros(shape, np.float32))
        buffer[2 * 64 + 64 + 64 + 4 * 9 + 2] = 163
        with pytest.raises(FormatError) as error:
            self.format.check(buffer, shape)
        assert error.value.facts["row"] == 16 + 9

    def test_the_same_codes_and_scales_as_ternary(self) -> None:
        weights = self.rng().standard_normal((50, 333)).astype(np.float32)
        two_bits = formats.get("ternary")
        for found, expected in zip(
            self.format.quantize(weights), two_bits.quantize(weights), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(
            self.format.unpack(self.format.pack(weights), weights.shape),
            two_bits.unpack(two_bits.pack(weights), weights.shape),
        )

    def test_bits_per_weight_of_a_large_matrix(self) -> None:
        assert self.format.bpw((6912, 2560)) == 1.6 + 32 / 2560
