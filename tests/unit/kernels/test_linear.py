"""Matrix products of every format on every instruction set against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from qh_kernels import cpu
from qh_kernels.cpu import QuantizedTokens
from qh_kernels.decoder import Matrix
from qh_runtime import formats
from tests.support import kernel_arithmetic as arithmetic

PACKED = ("ternary", "ternary5", "int8", *arithmetic.LUT4)
DENSE = ("f32", "f16", "bf16")
SHAPES = [(1, 1), (15, 31), (16, 32), (17, 33), (40, 128), (33, 129), (16, 515), (70, 1000)]


def weights(rows: int, cols: int, seed: int) -> np.ndarray:
    """Float32 weights with rows of very different size, one of them zero."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, cols)).astype(np.float32)
    w *= 10.0 ** rng.integers(-3, 3, (rows, 1)).astype(np.float32)
    w[rows // 2] = 0
    return w


def packed(name: str, rows: int, cols: int, seed: int = 0) -> tuple[Matrix, np.ndarray, np.ndarray]:
    """(matrix, codes, scales)."""
    spec = formats.get(name)
    codes, scales = spec.quantize(weights(rows, cols, seed))
    data = spec.pack_codes(codes, scales, (rows, cols))
    return Matrix(name, data, rows, cols), np.asarray(codes), np.asarray(scales)


def quantized(name: str, x: np.ndarray) -> QuantizedTokens:
    return (
        arithmetic.quantize_token(x)
        if name.startswith("ternary")
        else arithmetic.quantize_groups(x)
    )


def expected_product(
    name: str, codes: np.ndarray, scales: np.ndarray, x: QuantizedTokens
) -> np.ndarray:
    if name.startswith("ternary"):
        return arithmetic.ternary_product(codes, scales, x)
    group = formats.get(name).group_size
    if name in arithmetic.LUT4:
        return arithmetic.lut4_product(name, codes, scales, group, x)
    return arithmetic.grouped_product(codes.astype(np.int32), scales, group, x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PACKED)
def test_quantized_product_is_exact(isa: str, name: str, shape: tuple[int, int]) -> None:
    rows, cols = shape
    matrix, codes, scales = packed(name, rows, cols)
    rng = np.random.default_rng(rows * cols)
    for n_tokens in (1, 2, 9, 37):
        x = quantized(name, rng.standard_normal((n_tokens, cols)).astype(np.float32))
        found = cpu.linear_quantized(matrix, x, isa=isa)
        np.testing.assert_array_equal(found, expected_product(name, codes, scales, x))


@pytest.mark.parametrize("name", PACKED)
def test_largest_sums_do_not_overflow(isa: str, name: str) -> None:
    """Codes at the ends of their range on both sides, over a long row."""
    rows, cols = 16, 40_000
    spec = formats.get(name)
    if name in arithmetic.LUT4:
        integers = arithmetic.LUT4[name][0]
        low, high = integers.index(min(integers)), integers.index(max(integers))
    else:
        low, high = {"ternary": (-1, 1), "ternary5": (-1, 1), "int8": (-127, 127)}[name]
    sample, scales = spec.quantize(np.ones((rows, cols), np.float32))
    extremes = np.where(np.arange(rows)[:, None] % 2 == 0, low, high)
    codes = np.repeat(extremes, cols, axis=1).astype(sample.dtype)
    data = spec.pack_codes(codes, scales, (rows, cols))
    x = quantized(name, np.ones((1, cols), np.float32))
    sign = np.where(np.arange(17)[:, None] % 2 == 0, 1, -1)
    extreme = QuantizedTokens(
        (x.codes * sign).astype(np.int8),
        np.repeat(x.scales, 17, axis=0),
        (x.sums * sign).astype(np.int32),
    )
    found = cpu.linear_quantized(Matrix(name, data, rows, cols), extreme, isa=isa)
    np.testing.assert_array_equal(found, expected_product(name, codes, np.asarray(scales), extreme))


@pytest.mark.parametrize("name", PACKED)
def test_batch_and_row_split_do_not_change_a_bit(isa: str, name: str) -> None:
    rows, cols, n_tokens = 83, 300, 45
    matrix, _, _ = packed(name, rows, cols)
    rng = np.random.default_rng(5)
    x = quantized(name, rng.standard_normal((n_tokens, cols)).astype(np.float32))
    whole = cpu.linear_quantized(matrix, x, isa=isa)
    for t in range(n_tokens):
        one = QuantizedTokens(x.codes[t : t + 1], x.scales[t : t + 1], x.sums[t : t + 1])
        np.testing.assert_array_equal(cpu.linear_quantized(matrix, one, isa=isa), whole[t : t + 1])
    parts = np.full_like(whole, 7)
    for begin, end in ((0, 16), (48, rows), (16, 48)):
        cpu.linear_quantized(matrix, x, isa=isa, rows=(begin, end), out=parts)
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("name", PACKED + DENSE)
def test_rows_outside_the_range_are_not_written(isa: str, name: str) -> None:
    rows, cols = 48, 64
    spec = formats.get(name)
    matrix = Matrix(name, spec.pack(weights(rows, cols, 1)), rows, cols)
    out = np.full((3, rows), 7, np.float32)
    x = cpu.pad_activations(np.ones((3, cols), np.float32))
    if name in DENSE:
        x = np.ascontiguousarray(x[:, :cols])
    cpu.linear_f32(matrix, x, isa=isa, rows=(16, 32), out=out)
    assert (out[:, :16] == 7).all()
    assert (out[:, 32:] == 7).all()
    assert (out[:, 16:32] != 7).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PACKED + DENSE)
def test_float_product_and_unpacked_rows(isa: str, name: str, shape: tuple[int, int]) -> None:
    rows, cols = shape
    spec = formats.get(name)
    data = spec.pack(weights(rows, cols, 2))
    matrix = Matrix(name, data, rows, cols)
    values = spec.unpack(data, (rows, cols))
    unpacked = np.stack([cpu.unpack_row(matrix, r, isa=isa) for r in range(rows)])
    np.testing.assert_array_equal(unpacked, values)

    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, cols)).astype(np.float32)
    inputs = x if name in DENSE else cpu.pad_activations(x)
    found = cpu.linear_f32(matrix, inputs, isa=isa)
    exact = x.astype(np.float64) @ values.T.astype(np.float64)
    # Every product and every one of the cols additions rounds once; 8 more for the scales.
    size = np.abs(x).astype(np.float64) @ np.abs(values).T.astype(np.float64)
    bound = (cols + 8) * 2.0**-24 * size
    worst = np.unravel_index(np.argmax(np.abs(found - exact) - bound), exact.shape)
    assert (np.abs(found - exact) <= bound).all(), (
        f"{isa} {name} {shape} at {worst}: {found[worst]} against {exact[worst]}, "
        f"bound {bound[worst]}"
    )
    for t in range(5):
        np.testing.assert_array_equal(
            cpu.linear_f32(matrix, inputs[t : t + 1], isa=isa)[0], found[t]
        )


@pytest.mark.parametrize("name", PACKED)
def test_non_finite_activations_reach_the_output(isa: str, name: str) -> None:
    matrix, _, _ = packed(name, 16, 64)
    x = np.ones((1, 64), np.float32)
    x[0, 40] = np.inf
    codes = (cpu.quantize_token if name.startswith("ternary") else cpu.quantize_groups)(x, isa=isa)
    assert np.isnan(cpu.linear_quantized(matrix, codes, isa=isa)).all()
