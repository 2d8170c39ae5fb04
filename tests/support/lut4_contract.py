"""What every 4-bit format of the lut4 family must do besides the contract of all formats."""

from __future__ import annotations

import struct
from typing import ClassVar

import numpy as np
import pytest

from qh_runtime.errors import FormatError
from qh_runtime.formats.families.lut4 import Lut4Format
from tests.support import kernel_arithmetic as arithmetic
from tests.support.contracts import Array, FormatContract

__all__ = ["E2M1", "Lut4Contract"]

# The values of the codes of a 4-bit float from its definition, (-1)^s * 2^(e - 1) * (1 + m / 2).
E2M1 = tuple(
    sign * (0.5 * (code & 1) if code < 2 else 2.0 ** ((code >> 1) - 1) * (1 + (code & 1) / 2))
    for sign in (1.0, -1.0)
    for code in range(8)
)


class Lut4Contract(FormatContract):
    """Inherit, set what follows, and say what a scale is."""

    group: ClassVar[int]
    unit: ClassVar[int]  # columns are padded to a multiple of it
    scale_width: ClassVar[int]  # bytes of one group scale
    row_scales: ClassVar[bool] = False
    values: ClassVar[tuple[float, ...]]
    zero: ClassVar[int]
    # Of what was unpacked, when it is quantized again: nvfp4's row scale is a quotient.
    requantized: ClassVar[float] = 0.0

    def scale_at(self, data: bytes, at: int) -> float:
        """The group scale at this place."""
        raise NotImplementedError

    def per_line(self) -> int:
        """Groups whose scales share a 64-byte line."""
        return 4 // self.scale_width

    def lines(self, cols: int) -> int:
        """64-byte lines of a tile without its row scales."""
        padded = (cols + self.unit - 1) // self.unit * self.unit
        groups = padded // self.group
        return padded // 8 + (groups + self.per_line() - 1) // self.per_line()

    def tile_bytes(self, cols: int) -> int:
        return self.lines(cols) * 64 + (64 if self.row_scales else 0)

    def expected_nbytes(self, rows: int, cols: int) -> int:
        return ((rows + 15) // 16) * self.tile_bytes(cols)

    def weight_at(self, data: bytes, shape: tuple[int, int], row: int, col: int) -> float:
        tile = (row // 16) * self.tile_bytes(shape[1])
        r, t, group = row % 16, col % 4, col // self.group
        columns = self.per_line() * self.group
        span = tile + col // columns * (64 + columns * 8)
        byte = data[span + 64 + col % columns // 8 * 64 + 4 * r + t]
        value = self.values[byte & 15 if col % 8 < 4 else byte >> 4]
        place = span + (group % self.per_line() * 16 + r) * self.scale_width
        scale = np.float32(self.scale_at(data, place))
        if self.row_scales:
            at = tile + self.lines(shape[1]) * 64 + 4 * r
            scale *= np.float32(struct.unpack_from("<f", data, at)[0])
        return float(np.float32(value) * scale)

    def codes_and_scales(
        self, rng: np.random.Generator, shape: tuple[int, int]
    ) -> tuple[Array, Array]:
        codes = rng.integers(0, 16, shape).astype(np.uint8)
        return codes, self.scales(rng, (shape[0], (shape[1] + self.group - 1) // self.group))

    def scales(self, rng: np.random.Generator, shape: tuple[int, int]) -> Array:
        """Random scales for (rows, groups), as `quantize` returns them."""
        raise NotImplementedError

    def test_all_codes_of_both_nibbles(self) -> None:
        codes = np.zeros((16, 8 * 256), np.uint8)
        for byte in range(256):
            codes[:, 8 * byte : 8 * byte + 4] = byte & 15
            codes[:, 8 * byte + 4 : 8 * byte + 8] = byte >> 4
        _, scales = self.codes_and_scales(self.rng(), codes.shape)
        scales[...] = 1
        buffer = self.format.pack_codes(codes, scales, codes.shape)
        expected = np.asarray(self.values, np.float32)[codes]
        np.testing.assert_array_equal(self.format.unpack(buffer, codes.shape), expected)

    def test_padding_weighs_nothing_and_every_code_has_an_integer(self) -> None:
        lut4 = self.format
        assert isinstance(lut4, Lut4Format)
        assert self.values[lut4.zero_code] == 0
        assert lut4.zero_code == self.zero
        integers, step = arithmetic.LUT4[self.name]
        # nvfp4's kernels read scales as 2**-8 of their value.
        assert lut4.integers == integers
        assert lut4.step == step / (256 if self.name == "nvfp4" else 1)
        assert max(map(abs, integers)) <= 127

    def test_quantizing_what_was_unpacked_changes_nothing(self) -> None:
        shape = (19, 140)
        first = self.format.pack(self.rng().standard_normal(shape).astype(np.float32))
        values = self.format.unpack(first, shape)
        again = self.format.unpack(self.format.pack(values), shape)
        np.testing.assert_allclose(again, values, rtol=self.requantized, atol=0)

    def test_a_code_beyond_15_is_refused(self) -> None:
        codes, scales = self.codes_and_scales(self.rng(), (16, 64))
        codes[2, 2] = 16
        with pytest.raises(FormatError) as error:
            self.format.pack_codes(codes, scales, codes.shape)
        assert error.value.facts["found"] == 16

    def test_signed_zeros_and_the_smallest_numbers_stay_within_the_bound(self) -> None:
        weights = np.zeros((3, 200), np.float32)
        weights[0] = -0.0
        weights[1, ::3] = 1e-45
        weights[2] = self.rng().standard_normal(200) * 1e-40
        found = self.format.unpack(self.format.pack(weights), weights.shape)
        assert (np.abs(found - weights) <= self.format.error_bound(weights)).all()
        np.testing.assert_array_equal(found[0], 0)
