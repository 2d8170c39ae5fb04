"""Any shape and any weights: sizes, round trips, bounds and row chunks hold for every format."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from qh_runtime import formats

_SHAPES = st.tuples(st.integers(1, 50), st.integers(1, 300))
_SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)


def weights_of(shape: tuple[int, int], seed: int, size: float) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    weights = rng.standard_t(3, shape) * size
    weights[rng.random(shape) < 0.05] = 0
    return np.clip(weights, -60000, 60000).astype(np.float32)


@pytest.mark.parametrize("name", formats.names())
@given(
    shape=_SHAPES,
    seed=st.integers(0, 1 << 32),
    exponent=st.floats(-40, 4),
    split=st.integers(0, 3),
)
@_SETTINGS
def test_pack_and_unpack(
    name: str, shape: tuple[int, int], seed: int, exponent: float, split: int
) -> None:
    spec = formats.get(name)
    weights = weights_of(shape, seed, 10.0**exponent)
    codes, scales = spec.quantize(weights)
    buffer = spec.pack_codes(codes, scales, shape)
    assert buffer.nbytes == spec.nbytes(shape)
    assert spec.bpw(shape) >= spec.weight_bits
    found_codes, found_scales = spec.unpack_codes(buffer, shape)
    np.testing.assert_array_equal(found_codes, codes)
    found = spec.unpack(buffer, shape)
    values = spec.dequantize(found_codes, found_scales)
    np.testing.assert_array_equal(found, values[:, : shape[1]])
    error = np.abs(found.astype(np.float64) - weights)
    assert (error <= spec.error_bound(weights)).all()
    # Any cut at a multiple of 16 rows gives the same bytes.
    cut = min(16 * split, shape[0])
    if 0 < cut < shape[0] and spec.row_chunks:
        per_row = scales.ndim > 0 and scales.shape[0] == shape[0]
        parts = [
            spec.pack_codes(
                codes[begin:end], scales[begin:end] if per_row else scales, (end - begin, shape[1])
            )
            for begin, end in ((0, cut), (cut, shape[0]))
        ]
        np.testing.assert_array_equal(np.concatenate(parts), buffer)


@pytest.mark.parametrize("name", formats.names())
@given(
    weights=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40),
        elements=st.floats(-(2.0**15), 2.0**15, width=32),
    )
)
@_SETTINGS
def test_bounds_hold_for_chosen_weights(name: str, weights: NDArray[np.float32]) -> None:
    spec = formats.get(name)
    shape = (weights.shape[0], weights.shape[1])
    found = spec.unpack(spec.pack(weights), shape)
    error = np.abs(found.astype(np.float64) - weights)
    assert (error <= spec.error_bound(weights)).all()


# Not ternary: the mean magnitude of a ternary tensor is smaller than its scale, by definition. Not
# codebooks: centres of centres are others.
_STABLE = [x for x in formats.names() if formats.get(x).family not in ("ternary", "codebook")]


@pytest.mark.parametrize("name", _STABLE)
@given(shape=_SHAPES, seed=st.integers(0, 1 << 32))
@_SETTINGS
def test_quantizing_twice_changes_nothing(name: str, shape: tuple[int, int], seed: int) -> None:
    """What a format holds exactly, it keeps: the second rounding is the identity."""
    spec = formats.get(name)
    once = spec.unpack(spec.pack(weights_of(shape, seed, 1.0)), shape)
    twice = spec.unpack(spec.pack(once), shape)
    np.testing.assert_allclose(twice, once, rtol=2e-6, atol=0)
