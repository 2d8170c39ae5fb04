"""nf4: contract, golden bytes, the integers of its table."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from qh_runtime.errors import FormatError
from tests.support.contracts import Array
from tests.support.lut4_contract import Lut4Contract


class TestNf4(Lut4Contract):
    name = "nf4"
    group = 64
    unit = 64
    scale_width = 2
    zero = 7
    # Published: QLoRA, appendix E.
    values = (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    )

    def scale_at(self, data: bytes, at: int) -> float:
        return float(struct.unpack_from("<e", data, at)[0])

    def scales(self, rng: np.random.Generator, shape: tuple[int, int]) -> Array:
        return rng.uniform(-2, 2, shape).astype(np.float16)

    def test_golden_bytes(self) -> None:
        weights = np.zeros((1, 64), np.float32)
        weights[0, :8] = [-0.5, -0.35, 0.25, 0.5, 0.019, 0.021, -0.05, 0.36]
        expected = bytearray(b"\x00" * 64 + b"\x77" * 512)
        expected[0:2] = struct.pack("<e", 0.5)
        expected[64:68] = bytes([0x70, 0x81, 0x6C, 0xEF])
        assert self.format.pack(weights).tobytes() == bytes(expected)

    def test_the_lower_of_two_equally_near_codes_is_taken(self) -> None:
        table = np.asarray(self.values, np.float32)
        middles = (table[:-1] + table[1:]) / np.float32(2)
        weights = np.ones((1, 64), np.float32)
        weights[0, :15] = middles
        weights[0, 15:30] = np.nextafter(middles, np.float32(2))
        codes, _ = self.format.quantize(weights)
        assert codes[0, :15].tolist() == list(range(15))
        assert codes[0, 15:30].tolist() == list(range(1, 16))

    def test_no_multiplier_has_nearer_integers(self) -> None:
        """Of those up to 127 with which 1 is an integer: see the docstring's figures."""
        table = np.asarray(self.values)

        def errors(multiplier: int) -> np.ndarray:
            return np.abs(np.rint(table * multiplier) / multiplier - table)

        mean_squares = {m: float((errors(m) ** 2).mean()) for m in range(1, 128)}
        assert min(mean_squares, key=lambda m: mean_squares[m]) == 112
        found = errors(112)
        assert 0.0038 < found.max() < 0.0039
        assert 0.0017 < mean_squares[112] ** 0.5 < 0.00173
        relative = found[table != 0] / np.abs(table[table != 0])
        assert 0.0193 < relative.max() < 0.0194

    def test_weights_beyond_the_scale_type_are_refused(self) -> None:
        weights = np.full((1, 64), 65504, np.float32)
        np.testing.assert_array_equal(
            self.format.unpack(self.format.pack(weights), (1, 64)), weights
        )
        weights[0, 1] = np.nextafter(np.float32(65504), np.float32(np.inf))
        with pytest.raises(FormatError):
            self.format.quantize(weights)

    @pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00])
    def test_a_scale_that_is_not_finite_is_refused(self, bits: int) -> None:
        shape = (18, 64)
        buffer = self.format.pack(np.ones(shape, np.float32))
        struct.pack_into("<H", buffer, 64 + 512 + 2, bits)
        with pytest.raises(FormatError) as error:
            self.format.unpack(buffer, shape)
        assert error.value.facts["row"] == 17

    def test_bits_per_weight_of_a_large_matrix(self) -> None:
        assert self.format.bpw((4096, 4096)) == 4.25
