"""What every codebook format must do besides the contract of all formats."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from qh_runtime.errors import FormatError
from qh_runtime.formats.families.codebook import CodebookFormat
from tests.support.codebook_arithmetic import SCHEMES
from tests.support.contracts import SHAPES, Array, FormatContract

__all__ = ["CodebookContract"]


class CodebookContract(FormatContract):
    """Inherit and set the name; the scheme is that of `codebook_arithmetic`."""

    @property
    def scheme(self) -> tuple[int, int, int, int]:
        """Codebooks, bits of a code, weights of a code, bits that a table drops."""
        return SCHEMES[self.name]

    @property
    def spec(self) -> CodebookFormat:
        """The format under test."""
        found = self.format
        assert isinstance(found, CodebookFormat)
        return found

    def padded(self, shape: tuple[int, int]) -> tuple[int, int]:
        unit = 64 if self.scheme[1] == 8 else 16
        return (-(-shape[0] // unit) * unit, -(-shape[1] // 32) * 32)

    def sections(self, rows: int) -> tuple[int, int, int]:
        """Where codebooks, row factors and codes begin."""
        books, bits, vector, _ = self.scheme
        first = 64 if bits == 8 else 0
        after = first + books * (1 << bits) * vector * (2 if bits == 8 else 1)
        return first, after, after + 4 * self.padded((rows, 1))[0]

    def expected_nbytes(self, rows: int, cols: int) -> int:
        books, bits, vector, _ = self.scheme
        padded = self.padded((rows, cols))
        width = 1 if bits == 8 else 2
        return self.sections(rows)[2] + padded[0] * padded[1] // vector * books * width

    def weight_at(self, data: bytes, shape: tuple[int, int], row: int, col: int) -> float:
        books, bits, vector, _ = self.scheme
        book_at, factor_at, code_at = self.sections(shape[0])
        rows, cols = self.padded(shape)
        total = 0
        for m in range(books):
            if bits == 8:
                lookups = 32 // vector * books
                lookup = col % 32 // vector * books + m
                span, pass_row = col // 32, row // 256 * 256
                pass_rows = min(256, rows - pass_row)
                place = row % 64 // 4 % 4 * 16 + row % 64 // 16 * 4 + row % 4
                at = span * rows * lookups + pass_row * lookups + lookup * pass_rows
                code = data[code_at + at + (row - pass_row) // 64 * 64 + place]
                pair = (m * vector // 2 + col % vector // 2) * 256 + code
                total += struct.unpack_from("<h", data, book_at + 4 * pair + col % 2 * 2)[0]
            else:
                group = row // 16 * (cols // vector) + col // vector
                at = code_at + ((group * books + m) * 16 + row % 16) * 2
                code = struct.unpack_from("<H", data, at)[0]
                entry = ((m << bits) + code) * vector + col % vector
                total += struct.unpack_from("<b", data, book_at + entry)[0]
        factor = np.float32(struct.unpack_from("<f", data, factor_at + 4 * row)[0])
        if row >= shape[0]:
            return float(factor)
        if col >= shape[1]:
            # Padding of columns is never multiplied by anything but zero.
            return 0.0
        return float(factor * np.float32(total))

    def codes_and_scales(
        self, rng: np.random.Generator, shape: tuple[int, int]
    ) -> tuple[Array, Array]:
        books, bits, vector, _ = self.scheme
        codes = rng.integers(0, 1 << bits, (shape[0], -(-shape[1] // vector), books))
        entries = rng.integers(-100, 101, self.spec.book_shape).astype(np.int32)
        factors = rng.standard_normal(shape[0]).astype(np.float32)
        kind = np.uint8 if bits == 8 else np.uint16
        return codes.astype(kind), self.spec.join(factors, entries)

    def test_packing_row_chunks_equals_packing_at_once(self) -> None:
        """Not here: the codebooks come once, and tables have columns outermost."""
        assert not self.format.row_chunks

    @pytest.mark.parametrize("shape", SHAPES)
    def test_rows_can_be_taken_out(self, shape: tuple[int, int]) -> None:
        codes, scales = self.codes_and_scales(self.rng(), shape)
        buffer = self.format.pack_codes(codes, scales, shape)
        rows = np.arange(0, shape[0], 3)
        taken = self.spec.take_rows(buffer, shape, rows)
        found = self.format.unpack(taken, (len(rows), shape[1]))
        np.testing.assert_array_equal(found, self.format.unpack(buffer, shape)[rows])

    def test_float_codebooks_of_a_checkpoint(self) -> None:
        """Every weight is within the stated rounding of scale * sum of vectors."""
        books, bits, vector, _ = self.scheme
        rng = self.rng()
        codebooks = rng.standard_normal(self.spec.book_shape).astype(np.float16)
        codes = rng.integers(0, 1 << bits, (70, 12, books))
        row_scales = rng.standard_normal(70).astype(np.float16)
        packed = self.spec.from_float(codes, codebooks, row_scales)
        found = self.format.dequantize(*packed)
        wide = codebooks.astype(np.float64)
        total = sum(wide[m][codes[:, :, m]] for m in range(books))
        expected = row_scales[:, None].astype(np.float64) * np.reshape(total, (70, -1))
        largest, norm = np.abs(wide).max(), np.abs(wide).sum(axis=2).max()
        limits = self.spec.largest_entry, self.spec.largest_norm - vector / 2
        step = max(largest / limits[0], norm / limits[1])
        bound = books * step / 2 * np.abs(row_scales.astype(np.float64))[:, None]
        assert (np.abs(found - expected) <= bound * 1.001 + 1e-7 * np.abs(expected)).all()
        assert step < (0.04 if bits > 8 else 0.0005)

    def test_codebooks_that_are_not_finite_or_of_another_shape_are_refused(self) -> None:
        codes, _ = self.codes_and_scales(self.rng(), (4, 32))
        good = np.ones(self.spec.book_shape, np.float16)
        bad = good.copy()
        bad[-1, -1, -1] = np.inf
        for books, rows in (
            (bad, np.ones(4)),
            (good[:, :-1], np.ones(4)),
            (good, np.ones(5)),
            (good, np.array([1, 1, np.nan, 1])),
        ):
            with pytest.raises(FormatError):
                self.spec.from_float(codes, books, rows)

    def test_entries_that_do_not_fit_are_refused(self) -> None:
        shape = (3, 32)
        codes, scales = self.codes_and_scales(self.rng(), shape)
        for value in (0.5, self.spec.largest_entry + 1):
            wrong = scales.copy()
            wrong[-1] = value
            with pytest.raises(FormatError):
                self.format.pack_codes(codes, wrong, shape)
        factors, entries = self.spec.split(scales, 3)
        entries[0, 3] = self.spec.largest_entry
        if self.spec.has_tables and entries[0, 3].sum() > self.spec.largest_norm:
            with pytest.raises(FormatError):
                self.format.pack_codes(codes, self.spec.join(factors, entries), shape)

    def test_damaged_bytes_are_refused(self) -> None:
        shape = (70, 64)
        codes, scales = self.codes_and_scales(self.rng(), shape)
        buffer = self.format.pack_codes(codes, scales, shape)
        book_at, factor_at, _ = self.sections(70)
        for at, value in (
            (factor_at + 4 * 69, struct.pack("<f", np.inf)),
            (factor_at, struct.pack("<f", np.nan)),
            (book_at, b"\x80" if self.scheme[1] > 8 else struct.pack("<h", -32768)),
        ):
            damaged = buffer.copy()
            damaged[at : at + len(value)] = np.frombuffer(value, np.uint8)
            with pytest.raises(FormatError):
                self.format.unpack(damaged, shape)
        if self.spec.has_tables:
            for largest in (-1, 0, 1 << 30):
                damaged = buffer.copy()
                damaged[:4] = np.frombuffer(struct.pack("<i", largest), np.uint8)
                with pytest.raises(FormatError):
                    self.format.unpack(damaged, shape)

    def test_oracle_of_the_aqlm_package(self) -> None:
        """The functional dequantizer, on the same codes, float32 codebooks and scales."""
        import torch
        from aqlm.utils import _dequantize_weight

        books, bits, vector, _ = self.scheme
        shape = (33, 4 * 32)
        codes, scales = self.codes_and_scales(self.rng(), shape)
        factors, entries = self.spec.split(scales, 33)
        codebooks = torch.from_numpy(entries.astype(np.float32)).reshape(
            books, 1 << bits, 1, vector
        )
        dequantized = _dequantize_weight(
            torch.from_numpy(codes.astype(np.int64)),
            codebooks,
            torch.from_numpy(factors).reshape(-1, 1, 1, 1),
        )
        buffer = self.format.pack_codes(codes, scales, shape)
        found = self.format.unpack(buffer, shape)
        np.testing.assert_allclose(found, dequantized.numpy(), rtol=1e-6, atol=1e-6)
