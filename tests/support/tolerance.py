"""Bounds from norms times epsilon, and a comparison that says where and by how much it failed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["assert_within", "dot_bound", "worst_relative_error"]

_FLOAT32_EPSILON = 2.0**-24


def dot_bound(
    weights: NDArray[np.floating[Any]], x: NDArray[np.floating[Any]], slack: float = 2.0
) -> NDArray[np.float64]:
    """Largest error of x W^T in float32, whatever the order of summation.

    Args:
        weights: (out_features, in_features).
        x: (n_tokens, in_features).
        slack: covers the rounding of the result and of both inputs.

    Returns:
        (n_tokens, out_features): in_features * 2^-24 * (|x| |W|^T), times slack.
        Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, equation 3.5.
    """
    sums = np.abs(x).astype(np.float64) @ np.abs(weights).astype(np.float64).T
    return np.asarray(slack * x.shape[-1] * _FLOAT32_EPSILON * sums)


def worst_relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest abs difference, relative to the root mean square of each expected row."""
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    size = np.sqrt(np.mean(np.square(expected.astype(np.float64)), axis=-1, keepdims=True))
    return float((difference / np.maximum(size, 1e-30)).max())


def assert_within(
    found: NDArray[Any],
    expected: NDArray[Any],
    bound: float | NDArray[Any],
    *,
    relative: bool = False,
    label: str = "",
) -> None:
    """Fails with the worst index, both values and the bound.

    Args:
        bound: largest abs difference; broadcasts against expected.
        relative: the bound is a multiple of the root mean square of each row (last axis).
        label: what is compared; named in the failure.
    """
    assert found.shape == expected.shape, f"{label}: shape {found.shape}, not {expected.shape}"
    wide, target = found.astype(np.float64), expected.astype(np.float64)
    assert np.isfinite(target).all(), f"{label}: the expected values are not finite"
    limit = np.asarray(bound, dtype=np.float64)
    if relative:
        limit = limit * np.sqrt(np.mean(np.square(target), axis=-1, keepdims=True))
    limit = np.broadcast_to(limit, target.shape)
    # Not "difference > limit": a NaN has to fail.
    excess = ~(np.abs(wide - target) <= limit)
    if not excess.any():
        return
    ratio = np.abs(wide - target) / np.maximum(limit, 1e-300)
    ratio[np.isnan(ratio)] = np.inf
    worst = np.unravel_index(int(ratio.argmax()), ratio.shape)
    raise AssertionError(
        f"{label}: {int(excess.sum())} of {excess.size} values outside the bound; worst at "
        f"{tuple(int(i) for i in worst)}: found {wide[worst]!r}, expected {target[worst]!r}, "
        f"bound {limit[worst]:.3g}"
    )
