"""What every dense format must do: row-major elements, a cast, nothing hidden."""

from __future__ import annotations

import numpy as np

from tests.support.contracts import Array, FormatContract

__all__ = ["DenseContract"]


class DenseContract(FormatContract):
    """Inherit, set `name`, and say how one element is decoded."""

    element_bytes: int

    def decode(self, element: bytes) -> float:
        """One element, decoded by other means than the format's."""
        raise NotImplementedError

    def expected_nbytes(self, rows: int, cols: int) -> int:
        return rows * cols * self.element_bytes

    def padded(self, shape: tuple[int, int]) -> tuple[int, int]:
        return shape

    def weight_at(self, data: bytes, shape: tuple[int, int], row: int, col: int) -> float:
        begin = (row * shape[1] + col) * self.element_bytes
        return self.decode(data[begin : begin + self.element_bytes])

    def codes_and_scales(
        self, rng: np.random.Generator, shape: tuple[int, int]
    ) -> tuple[Array, Array]:
        return self.format.quantize(rng.standard_normal(shape).astype(np.float32))

    def test_the_buffer_is_the_elements(self) -> None:
        codes, scales = self.codes_and_scales(self.rng(), (5, 7))
        assert self.format.pack_codes(codes, scales, (5, 7)).tobytes() == codes.tobytes()
