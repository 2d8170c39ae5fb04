"""Norm, activation and rotation on every instruction set against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from qh_kernels import cpu

EPSILON = 2.0**-24
SIZES = [1, 2, 15, 16, 17, 31, 33, 64, 100, 1000]


def close(found: np.ndarray, exact: np.ndarray, bound: np.ndarray, where: str) -> None:
    error = np.abs(found.astype(np.float64) - exact)
    worst = np.unravel_index(np.argmax(error - bound), error.shape)
    assert (error <= bound).all(), (
        f"{where} at {worst}: {found[worst]} against {exact[worst]}, "
        f"error {error[worst]}, bound {np.broadcast_to(bound, error.shape)[worst]}"
    )


@pytest.mark.parametrize("n", SIZES)
def test_rms_norm(isa: str, n: int) -> None:
    rng = np.random.default_rng(n)
    x = (rng.standard_normal(n) * 5).astype(np.float32)
    weight = rng.standard_normal(n).astype(np.float32)
    eps = float(np.float32(1e-5))
    wide = x.astype(np.float64)
    exact = wide / np.sqrt((wide**2).mean() + eps) * weight
    # Half the relative error of the sum of squares (n / 32 + 6 roundings) and 6 further roundings.
    bound = (n / 64 + 10) * EPSILON * np.abs(exact)
    close(cpu.rms_norm(x, weight, eps, isa=isa), exact, bound, f"{isa} rms_norm {n}")


@pytest.mark.parametrize("n", [1, 16, 33, 1000])
@pytest.mark.parametrize("value", [3e38, -1e30, np.inf, np.nan])
def test_rms_norm_of_squares_beyond_float32_is_nan(isa: str, n: int, value: float) -> None:
    """1 / infinity would turn the row into zeros, and an overflow into a silent answer."""
    x = np.ones(n, np.float32)
    x[n // 2] = value
    assert np.isnan(cpu.rms_norm(x, x, 1e-5, isa=isa)).all()


def test_rms_norm_just_below_that(isa: str) -> None:
    x = np.full(16, 4e18, np.float32)
    ones = np.ones(16, np.float32)
    np.testing.assert_allclose(cpu.rms_norm(x, ones, 1e-5, isa=isa), ones, rtol=1e-6)


@pytest.mark.parametrize("n", SIZES)
def test_gated(isa: str, n: int) -> None:
    rng = np.random.default_rng(n)
    gate = (rng.standard_normal(n) * 20).astype(np.float32)
    up = rng.standard_normal(n).astype(np.float32)
    wide = gate.astype(np.float64)
    silu = wide / (1 + np.exp(-wide)) * up
    # e^x within 2 ulp = 4 half-ulps, then an addition, a division and a product.
    close(cpu.gated("silu", gate, up, isa=isa), silu, 8 * EPSILON * np.abs(silu) + 1e-37, "silu")
    relu2 = np.maximum(wide, 0) ** 2 * up
    close(cpu.gated("relu2", gate, up, isa=isa), relu2, 3 * EPSILON * np.abs(relu2), "relu2")


def test_exponential_over_its_whole_range(isa: str) -> None:
    """silu(-x) = -x / (1 + e^x) exposes e^x where it is large."""
    x = np.linspace(-100, 87, 200_001).astype(np.float32)
    found = cpu.gated("silu", -x, np.ones_like(x), isa=isa).astype(np.float64)
    wide = x.astype(np.float64)
    exact = -wide / (1 + np.exp(wide))
    relative = np.abs(found - exact) / np.maximum(np.abs(exact), 1e-30)
    assert relative.max() < 7 * EPSILON, (
        f"{isa}: {relative.max() / EPSILON:.2f} half-ulps at x = {x[relative.argmax()]}"
    )


def test_special_gate_values(isa: str) -> None:
    gate = np.array([np.inf, -np.inf, np.nan, 0, -0.0, 200, -200], np.float32)
    found = cpu.gated("silu", gate, np.ones_like(gate), isa=isa)
    assert found[0] == np.inf
    assert np.isnan(found[1:3]).all()  # -inf / inf as in the definition
    np.testing.assert_array_equal(found[3:], [0, 0, 200, 0])
    found = cpu.gated("relu2", gate, np.ones_like(gate), isa=isa)
    assert found[0] == np.inf
    assert np.isnan(found[2])
    np.testing.assert_array_equal(found[[1, 3, 4, 5, 6]], [0, 0, 0, 40_000, 0])


@pytest.mark.parametrize("n", SIZES)
def test_add(isa: str, n: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.standard_normal(n).astype(np.float32)
    y = rng.standard_normal(n).astype(np.float32)
    expected = x + y
    cpu.add(x, y, isa=isa)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("head_dim", [2, 6, 30, 32, 34, 64, 80, 128])
def test_rope(isa: str, head_dim: int) -> None:
    rng = np.random.default_rng(head_dim)
    x = rng.standard_normal((3, head_dim)).astype(np.float32)
    angle = rng.standard_normal(head_dim // 2) * 10
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    lower, upper = x[:, : head_dim // 2], x[:, head_dim // 2 :]
    expected = np.concatenate([lower * cos - upper * sin, upper * cos + lower * sin], axis=1)
    cpu.rope(x, cos, sin, isa=isa)
    np.testing.assert_array_equal(x, expected)
