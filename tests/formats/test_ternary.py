"""ternary: contract, golden bytes, the field that is never written, the published quantizer."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from qh_runtime.errors import FormatError
from qh_runtime.formats.ternary import absmean
from tests.support.contracts import Array, FormatContract


class TestTernary(FormatContract):
    name = "ternary"

    def expected_nbytes(self, rows: int, cols: int) -> int:
        return ((rows + 15) // 16) * (((cols + 15) // 16) * 64 + 64)

    def weight_at(self, data: bytes, shape: tuple[int, int], row: int, col: int) -> float:
        blocks = (shape[1] + 15) // 16
        tile = (row // 16) * (blocks * 64 + 64)
        r, block = row % 16, col // 16
        i, t = col % 16 // 4, col % 4
        code = ((data[tile + block * 64 + 4 * r + t] >> (2 * i)) & 3) - 1
        scale = struct.unpack_from("<f", data, tile + blocks * 64 + 4 * r)[0]
        return float(np.float32(code) * np.float32(scale))

    def codes_and_scales(
        self, rng: np.random.Generator, shape: tuple[int, int]
    ) -> tuple[Array, Array]:
        codes = rng.integers(-1, 2, shape).astype(np.int8)
        return codes, rng.uniform(0.01, 2, shape[0]).astype(np.float32)

    def test_golden_bytes(self) -> None:
        # Columns 0, 4, 8, 12 share byte 0: codes -1, 1, 0, 1 are fields 0, 2, 1, 2.
        codes = np.zeros((1, 17), np.int8)
        codes[0, [0, 4, 8, 12]] = [-1, 1, 0, 1]
        codes[0, 16] = 1
        buffer = self.format.pack_codes(codes, np.asarray(2.0, np.float32), (1, 17))
        expected = bytearray(b"\x55" * 128 + bytes(64))
        expected[0] = 0b10_01_10_00
        expected[64] = 0b01_01_01_10
        expected[128:132] = struct.pack("<f", 2.0)
        assert buffer.tobytes() == bytes(expected)

    def test_one_scale_for_the_tensor_reaches_every_row(self) -> None:
        codes = np.ones((20, 16), np.int8)
        buffer = self.format.pack_codes(codes, np.asarray(0.25, np.float32), (20, 16))
        np.testing.assert_array_equal(self.format.unpack(buffer, (20, 16)), 0.25)

    def test_every_byte_value_without_a_field_of_three(self) -> None:
        legal = [b for b in range(256) if all((b >> 2 * i) & 3 != 3 for i in range(4))]
        assert len(legal) == 81
        shape = (16, 32)
        for byte in legal:
            buffer = self.format.pack(np.zeros(shape, np.float32))
            buffer[:128] = byte
            codes, _ = self.format.unpack_codes(buffer, shape)
            fields = [((byte >> 2 * i) & 3) - 1 for i in range(4)]
            np.testing.assert_array_equal(codes[3], np.repeat(fields * 2, 4))

    @pytest.mark.parametrize("i", range(4))
    @pytest.mark.parametrize("position", [0, 63, 127])
    def test_field_three_is_refused(self, i: int, position: int) -> None:
        shape = (32, 32)
        buffer = self.format.pack(np.zeros(shape, np.float32))
        tile = 2 * 64 + 64
        buffer[tile + position] |= 3 << (2 * i)
        with pytest.raises(FormatError) as error:
            self.format.check(buffer, shape)
        assert error.value.facts["row"] == 16 + position % 64 // 4
        assert "3" in str(error.value.facts["found"])

    def test_codes_beyond_one_are_refused(self) -> None:
        for bad in (2, -2):
            codes = np.zeros((16, 16), np.int8)
            codes[3, 3] = bad
            with pytest.raises(FormatError) as error:
                self.format.pack_codes(codes, np.asarray(1, np.float32), (16, 16))
            assert error.value.facts["found"] == bad

    def test_quantizer_is_absmean_over_the_tensor(self) -> None:
        weights = np.array([[0.1, -0.4, 0.0, 0.3], [1.0, -0.2, 0.2, 0.2]], np.float32)
        codes, scale = self.format.quantize(weights)
        assert float(scale) == pytest.approx(2.4 / 8)
        assert codes.tolist() == [[0, -1, 0, 1], [1, -1, 1, 1]]
        chunked = absmean([weights[:1], weights[1:]])
        assert float(chunked) == pytest.approx(float(scale), rel=1e-6)

    def test_scale_never_falls_below_the_published_floor(self) -> None:
        codes, scale = self.format.quantize(np.full((2, 16), 1e-9, np.float32))
        assert float(scale) == np.float32(1e-5)
        assert not codes.any()

    def test_a_scale_that_is_not_finite_is_refused(self) -> None:
        buffer = self.format.pack(np.ones((16, 16), np.float32))
        struct.pack_into("<f", buffer, 64 + 4 * 5, float("nan"))
        with pytest.raises(FormatError) as error:
            self.format.unpack(buffer, (16, 16))
        assert error.value.facts["row"] == 5
