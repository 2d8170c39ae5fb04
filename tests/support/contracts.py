"""What every weight format must do; a test of a format inherits it and adds its own numbers.

The layout is checked against `weight_at`, which each test writes again from the drawing in
formats/base.py, one element at a time, so that packing and unpacking cannot be wrong together.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from qh_runtime import formats
from qh_runtime.errors import FormatError
from qh_runtime.formats import WeightFormat

__all__ = ["SHAPES", "FormatContract"]

# One weight, exact tiles, one more and one less of rows, columns and groups.
SHAPES = [(1, 1), (16, 32), (15, 31), (17, 33), (16, 128), (33, 129), (2, 257), (48, 384), (100, 7)]

Array = NDArray[Any]


class FormatContract:
    """Inherit, set `name`, and say how bytes mean weights."""

    name: ClassVar[str]

    # What a test of a format says.

    def expected_nbytes(self, rows: int, cols: int) -> int:
        """The size formula, written out."""
        raise NotImplementedError

    def weight_at(self, data: bytes, shape: tuple[int, int], row: int, col: int) -> float:
        """One weight, decoded from the bytes alone; row and col may lie in the padding."""
        raise NotImplementedError

    def codes_and_scales(
        self, rng: np.random.Generator, shape: tuple[int, int]
    ) -> tuple[Array, Array]:
        """Random codes (every code about equally often) and scales that the format can hold."""
        raise NotImplementedError

    def padded(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns with padding."""
        rows, cols = shape
        unit = self.format.column_unit
        return (-(-rows // 16) * 16, -(-cols // unit) * unit)

    # Support.

    @property
    def format(self) -> WeightFormat:
        """The format under test."""
        return formats.get(self.name)

    def rng(self) -> np.random.Generator:
        """Fixed seed."""
        return np.random.default_rng(20261123)

    # The contract.

    def test_is_registered_under_its_file_name(self) -> None:
        assert self.name in formats.names()
        assert self.format.name == self.name
        assert self.format.source
        assert importlib.import_module(f"qh_runtime.formats.{self.name}").__doc__

    @pytest.mark.parametrize("shape", SHAPES)
    def test_size_formula(self, shape: tuple[int, int]) -> None:
        expected = self.expected_nbytes(*shape)
        assert self.format.nbytes(shape) == expected
        assert self.format.bpw(shape) == expected * 8 / (shape[0] * shape[1])
        codes, scales = self.codes_and_scales(self.rng(), shape)
        assert self.format.pack_codes(codes, scales, shape).nbytes == expected

    @pytest.mark.parametrize("shape", SHAPES)
    def test_codes_survive_packing(self, shape: tuple[int, int]) -> None:
        codes, scales = self.codes_and_scales(self.rng(), shape)
        buffer = self.format.pack_codes(codes, scales, shape)
        found_codes, found_scales = self.format.unpack_codes(buffer, shape)
        np.testing.assert_array_equal(found_codes, codes)
        np.testing.assert_array_equal(found_scales, np.broadcast_to(scales, found_scales.shape))
        assert found_codes.dtype == codes.dtype

    @pytest.mark.parametrize("shape", SHAPES)
    def test_bytes_mean_what_the_drawing_says(self, shape: tuple[int, int]) -> None:
        codes, scales = self.codes_and_scales(self.rng(), shape)
        buffer = self.format.pack_codes(codes, scales, shape)
        found = self.format.unpack(buffer, shape)
        assert found.dtype == np.float32
        assert found.shape == shape
        data = buffer.tobytes()
        rows, cols = self.padded(shape)
        # Every weight and all padding of the small shapes; a sample of the large ones.
        places = [(row, col) for row in range(rows) for col in range(cols)]
        if len(places) > 3000:
            picks = self.rng().choice(len(places), 3000, replace=False)
            places = [places[i] for i in picks]
        for row, col in places:
            weight = self.weight_at(data, shape, row, col)
            inside = row < shape[0] and col < shape[1]
            expected = float(found[row, col]) if inside else 0.0
            assert weight == expected, f"row {row}, column {col}: {weight} != {expected}"

    @pytest.mark.parametrize("shape", SHAPES)
    def test_quantize_stays_within_the_stated_bound(self, shape: tuple[int, int]) -> None:
        rng = self.rng()
        for scale in (1.0, 3e-3, 1e-7, 1e4):
            weights = (rng.standard_normal(shape) * scale).astype(np.float32)
            weights[rng.random(shape) < 0.1] = 0
            found = self.format.unpack(self.format.pack(weights), shape)
            error = np.abs(found.astype(np.float64) - weights)
            bound = np.broadcast_to(self.format.error_bound(weights), shape)
            worst = np.unravel_index(int(np.argmax(error - bound)), shape)
            assert (error <= bound).all(), (
                f"{worst}: weight {weights[worst]}, found {found[worst]}, bound {bound[worst]}"
            )

    def test_zeros_stay_zeros(self) -> None:
        shape = (5, 40)
        found = self.format.unpack(self.format.pack(np.zeros(shape, np.float32)), shape)
        np.testing.assert_array_equal(found, 0)

    def test_packing_row_chunks_equals_packing_at_once(self) -> None:
        shape = (53, 70)
        codes, scales = self.codes_and_scales(self.rng(), shape)
        per_row = scales.ndim > 0 and scales.shape[0] == shape[0]
        parts = []
        for begin in (0, 16, 48):
            end = min({0: 16, 16: 48, 48: 53}[begin], 53)
            part = scales[begin:end] if per_row else scales
            parts.append(
                self.format.pack_codes(codes[begin:end], part, (end - begin, shape[1])).tobytes()
            )
        assert b"".join(parts) == self.format.pack_codes(codes, scales, shape).tobytes()

    def test_packing_into_a_given_buffer(self) -> None:
        shape = (17, 33)
        codes, scales = self.codes_and_scales(self.rng(), shape)
        size = self.format.nbytes(shape)
        out = np.full(size, 0xA5, np.uint8)
        result = self.format.pack_codes(codes, scales, shape, out)
        assert result is out
        np.testing.assert_array_equal(out, self.format.pack_codes(codes, scales, shape))
        with pytest.raises(FormatError):
            self.format.pack_codes(codes, scales, shape, np.empty(size + 1, np.uint8))

    def test_mapped_and_unaligned_bytes_unpack_alike(self) -> None:
        shape = (17, 33)
        buffer = self.format.pack(self.rng().standard_normal(shape).astype(np.float32))
        expected = self.format.unpack(buffer, shape)
        shifted = np.empty(buffer.nbytes + 1, np.uint8)[1:]
        shifted[...] = buffer
        shifted.flags.writeable = False
        np.testing.assert_array_equal(self.format.unpack(shifted, shape), expected)

    @pytest.mark.parametrize("change", [-1, 1, -64, 64])
    def test_a_buffer_of_another_size_is_refused(self, change: int) -> None:
        shape = (16, 128)
        size = self.format.nbytes(shape) + change
        with pytest.raises(FormatError) as error:
            self.format.unpack(np.zeros(size, np.uint8), shape)
        assert error.value.facts["format"] == self.name
        assert str(size) in str(error.value.facts["found"])

    @pytest.mark.parametrize("shape", [(0, 1), (1, 0), (-1, 4), (1 << 40, 1 << 40)])
    def test_an_absurd_shape_is_refused(self, shape: tuple[int, int]) -> None:
        with pytest.raises(FormatError):
            self.format.nbytes(shape)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_weights_that_are_not_finite_are_refused(self, value: float) -> None:
        weights = np.ones((3, 40), np.float32)
        weights[2, 39] = value
        with pytest.raises(FormatError):
            self.format.quantize(weights)

    def test_codes_of_another_type_or_shape_are_refused(self) -> None:
        codes, scales = self.codes_and_scales(self.rng(), (16, 32))
        with pytest.raises(FormatError):
            self.format.pack_codes(codes.astype(np.int64), scales, (16, 32))
        with pytest.raises(FormatError):
            self.format.pack_codes(codes, scales, (32, 16))

    def test_scales_of_another_type_or_shape_and_not_finite_are_refused(self) -> None:
        codes, scales = self.codes_and_scales(self.rng(), (16, 32))
        if self.format.family == "dense":
            assert scales.size == 0
            return
        broken = scales.copy()
        broken.reshape(-1)[-1] = np.nan
        for wrong in (scales.astype(np.float64), np.concatenate([scales, scales]), broken):
            with pytest.raises(FormatError):
                self.format.pack_codes(codes, wrong, (16, 32))

    @pytest.mark.parametrize("wrong", [np.ones(4, np.float32), np.ones((2, 2))])
    def test_weights_of_another_type_or_rank_are_refused(self, wrong: Array) -> None:
        with pytest.raises(FormatError):
            self.format.quantize(wrong)

    # The C++ side.

    @pytest.mark.parametrize("shape", SHAPES)
    def test_native_size_and_rows_equal_numpy(self, shape: tuple[int, int]) -> None:
        if importlib.util.find_spec("qh_kernels._native") is None:
            pytest.skip("the native module is not built")
        native: Any = importlib.import_module("qh_kernels._native")
        assert native.format_nbytes(self.name, *shape) == self.format.nbytes(shape)
        codes, scales = self.codes_and_scales(self.rng(), shape)
        buffer = self.format.pack_codes(codes, scales, shape)
        expected = self.format.unpack(buffer, shape)
        out = np.empty(shape[1], np.float32)
        for isa in native.available_isas():
            for row in range(shape[0]):
                out.fill(np.nan)
                native.unpack_row(isa, self.name, buffer, *shape, row, out)
                np.testing.assert_array_equal(out, expected[row], err_msg=f"{isa}, row {row}")
