"""The comparison that the oracle tests rest on can fail, and says where."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.tolerance import assert_within, dot_bound, worst_relative_error

EXPECTED = np.array([[1.0, 2.0], [3.0, 4.0]])


def test_equal_values_and_values_at_the_bound_pass() -> None:
    assert_within(EXPECTED, EXPECTED, 0.0)
    assert_within(EXPECTED + 0.5, EXPECTED, 0.5)


@pytest.mark.parametrize("wrong", [3.01, np.nan, np.inf, -np.inf])
def test_one_wrong_value_fails_with_its_place(wrong: float) -> None:
    found = EXPECTED.copy()
    found[1, 0] = wrong
    with pytest.raises(AssertionError, match=r"1 of 4 values .* worst at \(1, 0\).*bound 0.005"):
        assert_within(found, EXPECTED, 0.005, label="x")


def test_expected_values_must_be_finite_and_shapes_equal() -> None:
    with pytest.raises(AssertionError, match="not finite"):
        assert_within(EXPECTED, EXPECTED * np.nan, 1.0)
    with pytest.raises(AssertionError, match="shape"):
        assert_within(EXPECTED[:1], EXPECTED, 1.0)


def test_relative_bounds_are_of_the_rows_root_mean_square() -> None:
    expected = np.array([[3.0, 4.0], [300.0, 400.0]])
    found = expected + np.array([[0.0, 0.3], [30.0, 0.0]])
    assert_within(found, expected, 0.0849, relative=True)
    with pytest.raises(AssertionError, match=r"worst at \(0, 1\)|worst at \(1, 0\)"):
        assert_within(found, expected, 0.0848, relative=True)
    assert worst_relative_error(found, expected) == pytest.approx(0.3 / np.sqrt(12.5))


def test_float32_products_stay_within_their_bound() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((50, 400)).astype(np.float32)
    x = rng.standard_normal((7, 400)).astype(np.float32)
    expected = x.astype(np.float64) @ weights.astype(np.float64).T
    bound = dot_bound(weights, x)
    assert_within(x @ weights.T, expected, bound)
    assert (bound < 0.05).all()
