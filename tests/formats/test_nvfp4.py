"""nvfp4: contract, golden bytes, both of its scales."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from qh_runtime.errors import FormatError
from tests.support.contracts import Array
from tests.support.lut4_contract import E2M1, Lut4Contract


def e4m3(byte: int) -> float:
    """An E4M3 byte without sign, from its definition."""
    exponent, mantissa = byte >> 3, byte & 7
    return 2.0 ** (exponent - 7) * (1 + mantissa / 8) if exponent else 2.0**-6 * mantissa / 8


class TestNvfp4(Lut4Contract):
    name = "nvfp4"
    group = 16
    unit = 32
    scale_width = 1
    row_scales = True
    zero = 0
    values = E2M1
    requantized = 2**-21

    def scale_at(self, data: bytes, at: int) -> float:
        return e4m3(data[at])

    def scales(self, rng: np.random.Generator, shape: tuple[int, int]) -> Array:
        groups = np.array([e4m3(x) for x in range(0x7F)])[rng.integers(0, 0x7F, shape)]
        rows = rng.uniform(0.001, 2, (shape[0], 1))
        return np.concatenate([rows, groups], axis=1).astype(np.float32)

    def test_golden_bytes(self) -> None:
        # The row's scale is 1, since 2688 = 6 * 448.
        weights = np.zeros((1, 32), np.float32)
        weights[0, :8] = [2688.0, -1344.0, 448.0, 0.0, -224.0, 672.0, -2688.0, 896.0]
        weights[0, 16] = -6 * 1.75
        expected = bytearray(64 + 64 + 256)
        expected[0], expected[16] = 0x7E, 0x3E
        expected[64:68] = bytes([0x97, 0x3D, 0xF2, 0x40])
        expected[64 + 128] = 0x0F
        expected[64 + 256 : 64 + 260] = struct.pack("<f", 1.0)
        assert self.format.pack(weights).tobytes() == bytes(expected)

    def test_scales_round_to_the_nearest_e4m3_and_ties_to_the_even_byte(self) -> None:
        wanted = [1.0625, 1.1875, 1.125, 0.0029, 2.0**-12, 0.0]
        weights = np.zeros((1, 16 * 7), np.float32)
        weights[0, 0] = 2688
        weights[0, 16::16] = np.array(wanted) * 6
        _, scales = self.format.quantize(weights)
        assert scales[0].tolist() == [1, 448, 1, 1.25, 1.125, 2.0**-9, 2.0**-9, 2.0**-9]

    def test_every_e4m3_scale_is_held_and_read_exactly(self) -> None:
        scales = np.array([[0.37, *(e4m3(x) for x in range(0x7F))]], np.float32)
        codes = np.full((1, 16 * 0x7F), 2, np.uint8)
        found = self.format.unpack(self.format.pack_codes(codes, scales, codes.shape), codes.shape)
        np.testing.assert_array_equal(found[0, ::16], scales[0, 1:] * scales[0, 0])

    @pytest.mark.parametrize("byte", [0x7F, 0x80, 0x81, 0xFF])
    def test_negative_and_nan_bytes_are_refused(self, byte: int) -> None:
        shape = (18, 32)
        buffer = self.format.pack(np.ones(shape, np.float32))
        buffer[64 + 64 + 256 + 1] = byte
        with pytest.raises(FormatError) as error:
            self.format.unpack(buffer, shape)
        assert error.value.facts["row"] == 17

    @pytest.mark.parametrize("scale", [-1.0, -0.0, np.inf, np.nan, 2.0**117])
    def test_row_scales_of_no_float32_weights_are_refused(self, scale: float) -> None:
        codes, scales = self.codes_and_scales(self.rng(), (18, 32))
        buffer = self.format.pack_codes(codes, scales, codes.shape)
        scales[17, 0] = scale
        with pytest.raises(FormatError):
            self.format.pack_codes(codes, scales, codes.shape)
        struct.pack_into("<f", buffer, 2 * (64 + 256) + 64 + 4, scale)
        with pytest.raises(FormatError) as error:
            self.format.unpack(buffer, codes.shape)
        assert error.value.facts["row"] == 17

    @pytest.mark.parametrize("scale", [-1.0, -0.0, 449.0, 1.03, 2.0**-10])
    def test_what_is_no_e4m3_number_is_no_group_scale(self, scale: float) -> None:
        codes, scales = self.codes_and_scales(self.rng(), (2, 64))
        scales[1, 2] = scale
        with pytest.raises(FormatError):
            self.format.pack_codes(codes, scales, codes.shape)

    def test_the_largest_weights_are_finite(self) -> None:
        weights = np.full((1, 32), np.finfo(np.float32).max, np.float32)
        found = self.format.unpack(self.format.pack(weights), (1, 32))
        assert np.isfinite(found).all()
        assert (np.abs(found - weights) <= self.format.error_bound(weights)).all()

    def test_bits_per_weight_of_a_large_matrix(self) -> None:
        assert self.format.bpw((4096, 4096)) == 4.5 + 32 / 4096
