"""Norm, activation, rotation and attention on every instruction set against float64 NumPy."""

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


@pytest.mark.parametrize("kv_type", ["f16", "f32"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "positions", "first", "last"),
    [
        (1, 1, 2, 1, 0, 0),
        (4, 2, 16, 9, 0, 8),
        (6, 2, 30, 20, 3, 17),
        (8, 8, 64, 40, 0, 39),
        (3, 1, 80, 300, 7, 299),
        (4, 1, 128, 64, 63, 63),
        (2, 1, 66, 50, 0, 16),
    ],
)
def test_attention(
    isa: str, kv_type: str, heads: int, kv_heads: int, head_dim: int, positions: int,
    first: int, last: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(positions)
    q = rng.standard_normal((heads, head_dim)).astype(np.float32)
    shape = (positions, kv_heads, head_dim)
    keys = rng.standard_normal(shape).astype(np.float32)
    values = rng.standard_normal(shape).astype(np.float32)
    # What lies outside the window must not matter.
    for cache in (keys, values):
        cache[:first] = np.nan
        cache[last + 1 :] = np.nan
    if kv_type == "f16":
        stored = [a.astype(np.float16).view(np.uint16) for a in (keys, values)]
        keys, values = (a.view(np.float16).astype(np.float32) for a in stored)
    else:
        stored = [keys, values]
    scale = float(np.float32(1 / np.sqrt(head_dim)))
    found = cpu.attention(q, stored[0], stored[1], first=first, last=last, scale=scale, isa=isa)

    window = slice(first, last + 1)
    group = heads // kv_heads
    for head in range(heads):
        k = keys[window, head // group].astype(np.float64)
        v = values[window, head // group].astype(np.float64)
        products = np.abs(k) @ np.abs(q[head]).astype(np.float64)
        scores = k @ q[head].astype(np.float64) * scale
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        exact = weights @ v
        # A score is off by score_error, so each weight by twice that, relatively (its own and the
        # sum's); exponential and sums add their roundings.
        score_error = ((head_dim + 2) * EPSILON * products * scale).max() + np.abs(
            scores
        ).max() * EPSILON * 4
        relative = 2 * score_error + (len(scores) + 16) * EPSILON
        close(found[head], exact, relative * (weights @ np.abs(v)), f"{isa} head {head}")


def test_attention_of_equal_scores_is_the_mean(isa: str) -> None:
    q = np.zeros((1, 16), np.float32)
    keys = np.random.default_rng(0).standard_normal((37, 1, 16)).astype(np.float32)
    found = cpu.attention(q, keys, keys, first=0, last=36, scale=1.0, isa=isa)
    np.testing.assert_allclose(found[0], keys[:, 0].mean(axis=0), atol=1e-6)
