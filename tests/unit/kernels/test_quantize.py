"""Activation codes equal their NumPy definition bit for bit, on hostile rows too."""

from __future__ import annotations

import numpy as np
import pytest

from qh_kernels import cpu
from qh_kernels.kv_cache import KvHead
from tests.support import kernel_arithmetic as arithmetic


def hostile_rows(cols: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(cols)
    x = rng.standard_normal(cols).astype(np.float32)
    ties = (rng.integers(-254, 255, cols) * 0.5).astype(np.float32)
    ties[0] = 127
    rows = {
        "normal": x,
        "zeros": np.zeros(cols, np.float32),
        "negative zeros": -np.zeros(cols, np.float32),
        "ties": ties,
        "tiny": x * np.float32(1e-7),
        "subnormal": (x * 1e-43).astype(np.float32),
        "smallest": np.full(cols, 1e-45, np.float32),
        "huge": np.clip(x.astype(np.float64) * 1e38, -3.4e38, 3.4e38).astype(np.float32),
        "one outlier": np.where(np.arange(cols) == cols // 2, 1e30, x).astype(np.float32),
    }
    for name, value in (("inf", np.inf), ("-inf", -np.inf), ("nan", np.nan)):
        rows[name] = x.copy()
        rows[name][cols - 1] = value
    return rows


@pytest.mark.parametrize("cols", [1, 15, 16, 31, 32, 33, 100, 128, 129, 1000])
def test_codes_are_exact(isa: str, cols: int) -> None:
    for name, row in hostile_rows(cols).items():
        x = row[None, :]
        for kernel, definition in (
            (cpu.quantize_token, arithmetic.quantize_token),
            (cpu.quantize_groups, arithmetic.quantize_groups),
        ):
            found = kernel(x, isa=isa)
            expected = definition(x)
            where = f"{isa} {kernel.__name__} {name} {cols}"
            np.testing.assert_array_equal(found.codes, expected.codes, err_msg=where)
            np.testing.assert_array_equal(found.scales, expected.scales, err_msg=where)
            np.testing.assert_array_equal(found.sums, expected.sums, err_msg=where)


def test_rounding_is_half_to_even(isa: str) -> None:
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]], np.float32)
    for kernel in (cpu.quantize_token, cpu.quantize_groups):
        assert kernel(x, isa=isa).codes[0, :8].tolist() == [127, 0, 2, 2, 0, -2, -2, 126]


def test_token_codes_equal_torch(isa: str) -> None:
    """The division is written with a tensor: torch turns `127 / x` into `(1 / x) * 127`."""
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(1).standard_normal((7, 500)).astype(np.float32) * 3
    tensor = torch.from_numpy(x)
    largest = tensor.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
    a = torch.tensor(127.0) / largest
    codes = (tensor * a).round().clamp(-128, 127).to(torch.int8).numpy()
    found = cpu.quantize_token(x, isa=isa)
    np.testing.assert_array_equal(found.codes[:, :500], codes)
    np.testing.assert_array_equal(found.scales, (torch.tensor(1.0) / a).numpy())


def test_float16_cache_rows_round_as_numpy(isa: str) -> None:
    rng = np.random.default_rng(2)
    bits = rng.integers(0, 2**32, 4098, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32)
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)]
    steps = finite.astype(np.float32)
    ties = (steps[:-1] + steps[1:]) / 2
    with np.errstate(over="ignore", invalid="ignore"):
        for values in (x, steps, ties):
            pairs = values[: len(values) // 2 * 2]
            cache = KvHead.empty("f16", len(pairs), 1)
            cpu.store_kv(cache, 0, pairs, pairs[::-1].copy(), isa=isa)
            halves_of = pairs.astype(np.float16)
            np.testing.assert_array_equal(cache.stored_keys()[0], halves_of)
            np.testing.assert_array_equal(cache.stored_values()[0], halves_of[::-1])
    cache = KvHead.empty("f32", len(x), 70)
    cpu.store_kv(cache, 69, x, x, isa=isa)
    np.testing.assert_array_equal(cache.stored_keys()[69].view(np.uint32), bits)
    np.testing.assert_array_equal(cache.stored_values()[69].view(np.uint32), bits)
