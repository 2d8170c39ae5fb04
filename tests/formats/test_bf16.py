"""bf16: contract, all bit patterns, rounding against torch."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from qh_runtime.errors import FormatError
from qh_runtime.formats.bf16 import bf16_to_f32, f32_to_bf16
from tests.support.dense_contract import DenseContract


class TestBf16(DenseContract):
    name = "bf16"
    element_bytes = 2

    def decode(self, element: bytes) -> float:
        return float(struct.unpack("<f", b"\0\0" + element)[0])

    def test_golden_bytes(self) -> None:
        assert self.format.pack(np.array([[1.0, -2.5]], np.float32)).tobytes() == bytes.fromhex(
            "803f 20c0"
        )

    def test_all_bit_patterns_survive(self) -> None:
        patterns = np.arange(65536, dtype=np.uint16)
        values = bf16_to_f32(patterns)
        back = f32_to_bf16(values)
        nan = np.isnan(values)
        np.testing.assert_array_equal(back[~nan], patterns[~nan])
        assert np.isnan(bf16_to_f32(back[nan])).all()

    @pytest.mark.parametrize(
        ("bits", "expected"),
        [
            (0x3F808000, 0x3F80),  # tie, kept part even: down
            (0x3F818000, 0x3F82),  # tie, kept part odd: up
            (0x3F808001, 0x3F81),
            (0x3F807FFF, 0x3F80),
            (0xBFFF8000, 0xC000),  # carries into the exponent
            (0x00008000, 0x0000),  # subnormal tie to even
            (0x7F7FFFFF, 0x7F80),  # rounds to infinity
            (0x7F800001, 0x7FC0),  # a NaN whose payload lies in the dropped half stays a NaN
        ],
    )
    def test_rounding(self, bits: int, expected: int) -> None:
        value = np.array([bits], np.uint32).view(np.float32)
        assert int(f32_to_bf16(value)[0]) == expected

    def test_rounding_equals_torch(self) -> None:
        torch = pytest.importorskip("torch", reason="torch is a test extra")
        bits = self.rng().integers(0, 1 << 32, 200_000, dtype=np.uint32)
        values = bits.view(np.float32)
        values = values[~np.isnan(values)]
        theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
        np.testing.assert_array_equal(f32_to_bf16(values), theirs.view(np.uint16))

    def test_what_rounds_to_infinity_is_refused(self) -> None:
        largest = np.array([[0x7F7F7FFF]], np.uint32).view(np.float32)
        self.format.quantize(largest)
        with pytest.raises(FormatError):
            self.format.quantize(np.array([[0x7F7F8000]], np.uint32).view(np.float32))
