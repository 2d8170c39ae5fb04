"""Products with codebook matrices on every instruction set against NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from qh_kernels import KernelError, cpu
from qh_kernels.cpu import QuantizedTokens
from qh_kernels.decoder import Matrix
from qh_runtime import formats
from qh_runtime.formats.families.codebook import CodebookFormat
from tests.support import kernel_arithmetic as arithmetic
from tests.support.codebook_arithmetic import SCHEMES, codebook_product

TABLES = tuple(name for name, scheme in SCHEMES.items() if scheme[1] == 8)
SHAPES = [(1, 1), (15, 31), (64, 32), (65, 33), (130, 128), (192, 129), (300, 515), (257, 1056)]


@dataclass(frozen=True)
class Sample:
    """A packed matrix and what is in it."""

    name: str
    matrix: Matrix
    codes: NDArray[np.integer]
    factors: NDArray[np.float32]
    entries: NDArray[np.int32]

    def product(self, x: QuantizedTokens, n_tokens: int | None = None) -> NDArray[np.float32]:
        return codebook_product(
            self.name, self.codes, self.factors, self.entries, x, n_tokens=n_tokens
        )


def format_of(name: str) -> CodebookFormat:
    found = formats.get(name)
    assert isinstance(found, CodebookFormat)
    return found


def sample(name: str, rows: int, cols: int, seed: int = 0, extreme: bool = False) -> Sample:
    """Random codes and codebooks that use the whole range of entries."""
    spec = format_of(name)
    rng = np.random.default_rng(seed + rows * cols)
    groups = -(-cols // spec.vector)
    codes = rng.integers(0, 1 << spec.code_bits, (rows, groups, spec.n_codebooks))
    if extreme:
        each = min(spec.largest_norm // spec.vector, spec.largest_entry)
        signs = rng.integers(0, 2, (spec.n_codebooks, 1 << spec.code_bits, 1)) * 2 - 1
        entries = np.repeat(signs * each, spec.vector, axis=2)
        codes[:] = rng.integers(0, 2, (rows, 1, 1))
        entries[:, 0], entries[:, 1] = each, -each
    else:
        entries = rng.integers(-spec.largest_entry, spec.largest_entry + 1, spec.book_shape)
        norms = np.abs(entries).sum(axis=2, keepdims=True)
        entries = np.trunc(entries * np.minimum(1, spec.largest_norm / norms)).astype(np.int64)
    factors = (rng.standard_normal(rows) * 10.0 ** rng.integers(-6, 0, rows)).astype(np.float32)
    factors[rows // 2] = 0
    scales = spec.join(factors, entries.astype(np.int32))
    kind = np.uint8 if spec.has_tables else np.uint16
    data = spec.pack_codes(codes.astype(kind), scales, (rows, cols))
    return Sample(name, Matrix(name, data, rows, cols), codes, factors, entries.astype(np.int32))


def inputs(rows: int, cols: int, seed: int = 1) -> NDArray[np.float32]:
    """Activations with groups of very different size."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, cols)).astype(np.float32)
    x[:, ::97] *= 30
    x[:, 32:64] *= 1e-4
    x[-1, 64:96] = 0
    return x


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SCHEMES)
def test_quantized_product_is_exact(isa: str, name: str, shape: tuple[int, int]) -> None:
    held = sample(name, *shape)
    for n_tokens in (1, 2, 9, 19):
        x = arithmetic.quantize_groups(inputs(n_tokens, shape[1]))
        found = cpu.linear_quantized(held.matrix, x, isa=isa)
        np.testing.assert_array_equal(found, held.product(x), err_msg=f"{n_tokens} tokens")


@pytest.mark.parametrize("name", SCHEMES)
def test_largest_sums_do_not_overflow(isa: str, name: str) -> None:
    """Entries and inputs at the ends of their range, of one sign, over a long row."""
    held = sample(name, 70, 10_000, extreme=True)
    ones = arithmetic.quantize_groups(np.ones((1, 10_000), np.float32))
    for n_tokens in (2, 17):
        sign = np.where(np.arange(n_tokens)[:, None] % 2 == 0, 1, -1)
        x = QuantizedTokens(
            (ones.codes * sign).astype(np.int8),
            np.repeat(ones.scales, n_tokens, axis=0),
            (ones.sums * sign).astype(np.int32),
        )
        found = cpu.linear_quantized(held.matrix, x, isa=isa)
        np.testing.assert_array_equal(found, held.product(x))
        exact = (x.codes * np.repeat(x.scales, 32, axis=1)).astype(np.float64)[:, :10_000]
        weights = formats.get(name).unpack(held.matrix.data, (70, 10_000)).astype(np.float64)
        # Rounding to 8 bits and to table entries costs little where all is large.
        np.testing.assert_allclose(found, exact @ weights.T, rtol=0.01)


@pytest.mark.parametrize("name", SCHEMES)
def test_batch_and_row_split_do_not_change_a_bit(isa: str, name: str) -> None:
    rows, cols = 600, 1100
    held = sample(name, rows, cols)
    for n_tokens in (13, 18):
        x = arithmetic.quantize_groups(inputs(n_tokens, cols))
        whole = cpu.linear_quantized(held.matrix, x, isa=isa)
        parts = np.full_like(whole, 7)
        for begin, end in ((0, 256), (512, rows), (256, 512)):
            cpu.linear_quantized(held.matrix, x, isa=isa, rows=(begin, end), out=parts)
        np.testing.assert_array_equal(parts, whole)
    if name in TABLES:
        return
    for t in range(n_tokens):
        one = QuantizedTokens(x.codes[t : t + 1], x.scales[t : t + 1], x.sums[t : t + 1])
        np.testing.assert_array_equal(
            cpu.linear_quantized(held.matrix, one, isa=isa), whole[t : t + 1]
        )


@pytest.mark.parametrize("name", TABLES)
def test_batches_below_the_threshold_equal_single_tokens(isa: str, name: str) -> None:
    held = sample(name, 70, 1100)
    x = arithmetic.quantize_groups(inputs(15, 1100))
    whole = cpu.linear_quantized(held.matrix, x, isa=isa)
    for t in range(15):
        one = QuantizedTokens(x.codes[t : t + 1], x.scales[t : t + 1], x.sums[t : t + 1])
        np.testing.assert_array_equal(
            cpu.linear_quantized(held.matrix, one, isa=isa), whole[t : t + 1]
        )


@pytest.mark.parametrize("name", TABLES)
def test_rows_of_tables_begin_at_passes(isa: str, name: str) -> None:
    held = sample(name, 300, 64)
    x = arithmetic.quantize_groups(inputs(1, 64))
    with pytest.raises(KernelError):
        cpu.linear_quantized(held.matrix, x, isa=isa, rows=(64, 300))


@pytest.mark.parametrize("shape", [(1, 1), (17, 33), (65, 129), (70, 1000)])
@pytest.mark.parametrize("name", SCHEMES)
def test_float_product_and_unpacked_rows(isa: str, name: str, shape: tuple[int, int]) -> None:
    rows, cols = shape
    held = sample(name, rows, cols)
    values = formats.get(name).unpack(held.matrix.data, shape)
    unpacked = np.stack([cpu.unpack_row(held.matrix, r, isa=isa) for r in range(rows)])
    np.testing.assert_array_equal(unpacked, values)
    x = np.random.default_rng(3).standard_normal((9, cols)).astype(np.float32)
    padded = cpu.pad_activations(x)
    found = cpu.linear_f32(held.matrix, padded, isa=isa)
    exact = x.astype(np.float64) @ values.T.astype(np.float64)
    size = np.abs(x).astype(np.float64) @ np.abs(values).T.astype(np.float64)
    assert (np.abs(found - exact) <= (cols + 8) * 2.0**-24 * size).all()
    for t in range(9):
        np.testing.assert_array_equal(
            cpu.linear_f32(held.matrix, padded[t : t + 1], isa=isa)[0], found[t]
        )


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("n_tokens", [1, 5, 17])
@pytest.mark.parametrize("name", SCHEMES)
def test_non_finite_activations_reach_the_output(
    isa: str, name: str, n_tokens: int, value: float
) -> None:
    held = sample(name, 65, 640)
    x = np.ones((n_tokens, 640), np.float32)
    x[-1, 600] = value
    found = cpu.linear_quantized(held.matrix, cpu.quantize_groups(x, isa=isa), isa=isa)
    assert np.isnan(found[-1]).all()
    assert np.isfinite(found[:-1]).all()


@pytest.mark.parametrize("name", SCHEMES)
def test_damaged_bytes_give_the_same_on_every_instruction_set(isa: str, name: str) -> None:
    """Codebooks that no packer writes overflow their sums, in the same way everywhere."""
    held = sample(name, 70, 160)
    rng = np.random.default_rng(9)
    data = held.matrix.data.copy()
    data[:4] = 0xFF
    data[64:4096] = rng.integers(0, 256, 4096 - 64)
    damaged = Matrix(name, data, 70, 160)
    for n_tokens in (3, 16):
        x = arithmetic.quantize_groups(inputs(n_tokens, 160))
        expected = cpu.linear_quantized(damaged, x, isa="scalar")
        found = cpu.linear_quantized(damaged, x, isa=isa)
        np.testing.assert_array_equal(found, expected)
