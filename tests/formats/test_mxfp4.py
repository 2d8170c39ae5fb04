"""mxfp4: contract, golden bytes, scales at the ends of their range."""

from __future__ import annotations

import numpy as np
import pytest

from qh_runtime.errors import FormatError
from tests.support.contracts import Array
from tests.support.lut4_contract import E2M1, Lut4Contract


class TestMxfp4(Lut4Contract):
    name = "mxfp4"
    group = 32
    unit = 32
    scale_width = 1
    zero = 0
    values = E2M1

    def scale_at(self, data: bytes, at: int) -> float:
        return float(2.0 ** (data[at] - 127))

    def scales(self, rng: np.random.Generator, shape: tuple[int, int]) -> Array:
        return np.ldexp(np.float32(1), rng.integers(-20, 20, shape)).astype(np.float32)

    def test_golden_bytes(self) -> None:
        weights = np.zeros((1, 32), np.float32)
        weights[0, :8] = [1.0, -2.0, 12.0, 0.0, -1.0, 6.0, -12.0, 3.0]
        expected = bytearray(64 + 256)
        expected[0] = 128
        expected[64:68] = bytes([0x91, 0x5A, 0xF7, 0x30])
        assert self.format.pack(weights).tobytes() == bytes(expected)

    def test_ties_take_the_even_code_and_more_than_six_is_six(self) -> None:
        weights = np.zeros((1, 32), np.float32)
        weights[0, :9] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 7.99, -7.99]
        codes, scales = self.format.quantize(weights)
        assert scales.tolist() == [[1.0]]
        assert codes[0, :9].tolist() == [0, 2, 2, 4, 4, 6, 6, 7, 15]

    @pytest.mark.parametrize("exponent", [-149, -127, -126, -125, 0, 127])
    def test_every_power_of_two_is_exact(self, exponent: int) -> None:
        weights = np.full((1, 32), np.ldexp(np.float32(1), exponent), np.float32)
        found = self.format.unpack(self.format.pack(weights), (1, 32))
        # Below half of the smallest scale's smallest value there is only zero.
        np.testing.assert_array_equal(found, weights if exponent >= -128 else 0)

    @pytest.mark.parametrize("byte", [253, 254, 255])
    def test_scales_that_no_float32_weight_has_are_refused(self, byte: int) -> None:
        shape = (18, 32)
        buffer = self.format.pack(np.ones(shape, np.float32))
        largest = buffer.copy()
        largest[64 + 256 + 1] = 252
        assert self.format.unpack(largest, shape)[17, 0] == 2.0**125 * 4
        buffer[64 + 256 + 1] = byte
        with pytest.raises(FormatError) as error:
            self.format.unpack(buffer, shape)
        assert error.value.facts["row"] == 17

    @pytest.mark.parametrize("scale", [0.0, 3.0, -1.0, 2.0**126, np.inf, 2.0**-128])
    def test_what_is_no_power_of_two_in_range_is_no_scale(self, scale: float) -> None:
        codes, scales = self.codes_and_scales(self.rng(), (2, 64))
        scales[1, 1] = scale
        with pytest.raises(FormatError):
            self.format.pack_codes(codes, scales, codes.shape)

    def test_bits_per_weight_of_a_large_matrix(self) -> None:
        assert self.format.bpw((4096, 4096)) == 4.25
