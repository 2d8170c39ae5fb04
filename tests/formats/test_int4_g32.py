"""int4_g32: the contract of int4 with groups of 32 inputs."""

from __future__ import annotations

from tests.support.int4_contract import Int4Contract


class TestInt4G32(Int4Contract):
    name = "int4_g32"
    group = 32

    def test_bits_per_weight_of_a_large_matrix(self) -> None:
        assert self.format.bpw((4096, 4096)) == 4 + 16 / 32
