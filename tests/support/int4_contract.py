"""What every int4 format of the lut4 family must do, whatever its group size."""

from __future__ import annotations

import struct
from typing import ClassVar

import numpy as np
import pytest

from qh_runtime.errors import FormatError
from tests.support.contracts import Array, FormatContract

__all__ = ["Int4Contract"]


class Int4Contract(FormatContract):
    """Inherit, set `name` and `group`."""

    group: ClassVar[int]

    def lines(self, cols: int) -> int:
        """64-byte lines of a tile: blocks, and one of scales for every two groups."""
        groups = (cols + self.group - 1) // self.group
        return groups * self.group // 8 + (groups + 1) // 2

    def expected_nbytes(self, rows: int, cols: int) -> int:
        return ((rows + 15) // 16) * self.lines(cols) * 64

    def weight_at(self, data: bytes, shape: tuple[int, int], row: int, col: int) -> float:
        tile = (row // 16) * self.lines(shape[1]) * 64
        r, t, group = row % 16, col % 4, col // self.group
        span = tile + group // 2 * (64 + 2 * self.group * 8)
        byte = data[span + 64 + col % (2 * self.group) // 8 * 64 + 4 * r + t]
        q = byte & 15 if col % 8 < 4 else byte >> 4
        scale = struct.unpack_from("<e", data, span + (group % 2 * 16 + r) * 2)[0]
        return float(np.float32(scale) * np.float32(q - 8))

    def codes_and_scales(
        self, rng: np.random.Generator, shape: tuple[int, int]
    ) -> tuple[Array, Array]:
        codes = rng.integers(0, 16, shape).astype(np.uint8)
        groups = (shape[1] + self.group - 1) // self.group
        return codes, rng.uniform(-2, 2, (shape[0], groups)).astype(np.float16)

    def test_golden_bytes(self) -> None:
        codes = np.full((1, self.group), 8, np.uint8)
        codes[0, :8] = [0, 1, 2, 3, 15, 14, 13, 12]
        buffer = self.format.pack_codes(codes, np.array([[-0.5]], np.float16), (1, self.group))
        expected = bytearray(b"\x00" * 64 + b"\x88" * (self.group * 8))
        expected[0:2] = struct.pack("<e", -0.5)
        expected[64:68] = bytes([0xF0, 0xE1, 0xD2, 0xC3])
        assert buffer.tobytes() == bytes(expected)

    def test_all_codes_of_both_nibbles(self) -> None:
        codes = np.zeros((16, 8 * 256), np.uint8)
        for byte in range(256):
            codes[:, 8 * byte : 8 * byte + 4] = byte & 15
            codes[:, 8 * byte + 4 : 8 * byte + 8] = byte >> 4
        ones = np.ones((16, codes.shape[1] // self.group), np.float16)
        buffer = self.format.pack_codes(codes, ones, codes.shape)
        expected = codes.astype(np.float32) - 8
        np.testing.assert_array_equal(self.format.unpack(buffer, codes.shape), expected)

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_the_largest_magnitude_is_exact_whatever_its_sign(self, sign: float) -> None:
        weights = np.zeros((1, self.group), np.float32)
        weights[0, :5] = np.array([4.0, 0.25, 0.75, -0.25, -3.9]) * sign
        codes, scales = self.format.quantize(weights)
        assert scales.tolist() == [[-0.5 * sign]]
        # Ties go to even; -3.9 lies beyond code 15 and is clipped to 7 steps.
        assert codes[0, :5].tolist() == [0, 8, 6, 8, 15]
        assert codes[0, 5:].tolist() == [8] * (self.group - 5)

    def test_of_two_equal_magnitudes_the_negative_one_is_exact(self) -> None:
        weights = np.zeros((1, self.group), np.float32)
        weights[0, :3] = [4.0, -4.0, -0.0]
        codes, scales = self.format.quantize(weights)
        assert scales.tolist() == [[0.5]]
        assert codes[0, :3].tolist() == [15, 0, 8]

    def test_groups_are_independent(self) -> None:
        weights = np.ones((2, 2 * self.group), np.float32)
        weights[1, self.group] = 1000.0
        found = self.format.unpack(self.format.pack(weights), weights.shape)
        np.testing.assert_array_equal(found[:, : self.group], 1)
        np.testing.assert_array_equal(found[0], 1)
        assert found[1, self.group] == 1000.0

    def test_a_code_beyond_15_is_refused(self) -> None:
        codes, scales = self.codes_and_scales(self.rng(), (16, self.group))
        codes[2, 2] = 16
        with pytest.raises(FormatError) as error:
            self.format.pack_codes(codes, scales, codes.shape)
        assert error.value.facts["found"] == 16

    def test_weights_beyond_the_scale_type_are_refused(self) -> None:
        limit = np.float32(8 * 65504)
        weights = np.full((1, self.group), limit, np.float32)
        found = self.format.unpack(self.format.pack(weights), weights.shape)
        np.testing.assert_array_equal(found, limit)
        weights[0, 1] = np.nextafter(limit, np.float32(np.inf))
        with pytest.raises(FormatError):
            self.format.quantize(weights)

    @pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00])
    def test_a_scale_that_is_not_finite_is_refused(self, bits: int) -> None:
        shape = (18, self.group)
        buffer = self.format.pack(np.ones(shape, np.float32))
        struct.pack_into("<H", buffer, 64 + self.group * 8 + 2, bits)
        with pytest.raises(FormatError) as error:
            self.format.unpack(buffer, shape)
        assert error.value.facts["row"] == 17
