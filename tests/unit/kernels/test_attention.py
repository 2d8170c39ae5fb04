"""KV cache and attention on every instruction set against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from qh_kernels import cpu
from qh_kernels.kv_cache import KV_BLOCK, KV_TYPES, KvHead, KvType, kv_block_bytes
from qh_runtime.first_load.closeness import attention_of_head
from qh_runtime.reference import ops

# heads, head_dim, positions, first, last: one position, odd sizes, several blocks and segments, a
# window that begins inside a block, groups of 1 to 8 heads.
SHAPES = [
    (1, 2, 1, 0, 0),
    (2, 16, 9, 0, 8),
    (3, 30, 20, 3, 17),
    (1, 64, 40, 0, 39),
    (3, 80, 300, 7, 299),
    (4, 128, 64, 63, 63),
    (5, 66, 150, 70, 140),
    (6, 10, 129, 0, 128),
    (7, 14, 600, 0, 599),
    (8, 128, 700, 300, 511),
    (4, 130, 257, 0, 256),
]


def filled(
    kv_type: KvType, keys: np.ndarray, values: np.ndarray, isa: str, first: int = 0
) -> KvHead:
    """A cache with positions from `first` on; all others are NaN."""
    n_positions, head_dim = keys.shape
    cache = KvHead.empty(kv_type, head_dim, n_positions)
    for position in range(first, n_positions):
        cpu.store_kv(cache, position, keys[position], values[position], isa=isa)
    return cache


def assert_close(found: np.ndarray, expected: np.ndarray, bound: np.ndarray, where: str) -> None:
    error = np.abs(found.astype(np.float64) - expected)
    worst = np.unravel_index(np.argmax(error - bound), error.shape)
    assert (error <= bound).all(), (
        f"{where} at {worst}: {found[worst]} against {expected[worst]}, bound {bound[worst]}"
    )


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize(("heads", "head_dim", "positions", "first", "last"), SHAPES)
def test_attention(
    isa: str, kv_type: KvType, heads: int, head_dim: int, positions: int, first: int, last: int
) -> None:
    rng = np.random.default_rng(positions)
    q = rng.standard_normal((heads, head_dim)).astype(np.float32)
    keys, values = rng.standard_normal((2, last + 1, head_dim)).astype(np.float32)
    # What lies outside the window must not matter: there, everything is NaN.
    cache = filled(kv_type, keys, values, isa, first)
    scale = float(np.float32(1 / np.sqrt(head_dim)))
    found = cpu.attention(q, cache, first=first, last=last, scale=scale, isa=isa)
    expected, bound = attention_of_head(q.astype(np.float64), cache, first, last, scale)
    assert_close(found, expected, bound, isa)
    # The number of heads of a call changes nothing.
    for head in range(heads):
        alone = cpu.attention(
            q[head : head + 1].copy(), cache, first=first, last=last, scale=scale, isa=isa
        )
        np.testing.assert_array_equal(alone[0], found[head])


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_attention_of_equal_scores_is_the_mean(isa: str, kv_type: KvType) -> None:
    q = np.zeros((1, 16), np.float32)
    keys = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
    cache = filled(kv_type, keys, keys, isa)
    found = cpu.attention(q, cache, first=0, last=299, scale=1.0, isa=isa)
    # int8 weights are equal times the scales of the values, which are rounded.
    atol = 1e-6 if kv_type != "int8" else float(np.abs(keys).max()) / 254
    np.testing.assert_allclose(found[0], cache.values()[:300].mean(axis=0), atol=atol)


def test_the_largest_score_takes_all(isa: str) -> None:
    """Scores of 1e4 and more: what is subtracted before e^x is the largest, wherever it is."""
    keys = np.zeros((400, 32), np.float32)
    values = np.random.default_rng(1).standard_normal((400, 32)).astype(np.float32)
    q = np.full((2, 32), 100, np.float32)
    for place in (0, 63, 64, 255, 256, 399):
        for kv_type in KV_TYPES:
            keys[:] = -1
            keys[place] = 127
            cache = filled(kv_type, keys, values, isa)
            found = cpu.attention(q, cache, first=0, last=399, scale=1.0, isa=isa)
            expected = np.broadcast_to(cache.values()[place], (2, 32))
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["q", "key", "value"])
def test_what_is_not_finite_is_not_hidden(
    isa: str, kv_type: KvType, bad: float, where: str
) -> None:
    rng = np.random.default_rng(3)
    q, keys, values = (rng.standard_normal((n, 32)).astype(np.float32) for n in (4, 90, 90))
    {"q": q[1:2], "key": keys[70:71], "value": values[70:71]}[where][0, 5] = bad
    cache = filled(kv_type, keys, values, isa)
    found = cpu.attention(q, cache, first=0, last=89, scale=0.2, isa=isa)
    if kv_type == "int8" or where == "value" or np.isnan(bad):
        touched = found[1] if where == "q" else found
        assert not np.isfinite(touched).all()
        if kv_type == "int8" and where != "q":
            assert np.isnan(found).all()
    if where == "q":
        assert np.isfinite(found[[0, 2, 3]]).all()
    before = cpu.attention(q[:1].copy(), cache, first=0, last=69, scale=0.2, isa=isa)
    assert np.isfinite(before).all()


def hostile_rows(head_dim: int) -> np.ndarray:
    rng = np.random.default_rng(head_dim)
    rows = rng.standard_normal((12, head_dim)).astype(np.float32)
    rows[0] = 0
    rows[1] = -0.0
    rows[2] = 1e-45
    rows[3] *= np.float32(1e-38)
    rows[4] *= np.float32(1e37)
    rows[5, 1] = np.nan
    rows[6, 0] = np.inf
    rows[7, -1] = -np.inf
    rows[8, 0] = 3.4e38
    rows[9, 0] = 1e4  # the others become 0 or 1
    rows[10] = np.linspace(-127, 127, head_dim)
    rows[11] = np.rint(rng.uniform(-127, 127, head_dim)) + np.float32(0.5)
    rows[11, 0] = 127  # scale 1: ties
    return rows


@pytest.mark.parametrize("head_dim", [2, 6, 16, 30, 64, 66, 128, 130])
def test_int8_codes_are_those_of_the_definition(isa: str, head_dim: int) -> None:
    keys = hostile_rows(head_dim)
    values = keys[::-1].copy()
    cache = filled("int8", keys, values, isa)
    for given, codes, scales in zip(
        (keys, values),
        (cache.stored_keys(), cache.stored_values()),
        cache.scales(),
        strict=True,
    ):
        finite = np.isfinite(given).all(axis=1)
        with np.errstate(all="ignore"):
            expected, expected_scales = ops.quantize_kv(given)
        np.testing.assert_array_equal(codes[:12][finite], expected[finite])
        np.testing.assert_array_equal(scales[:12][finite], expected_scales[finite, 0])
        assert (codes[:12][~finite] == 0).all()
        assert np.isnan(scales[:12][~finite]).all()


def test_a_block_is_written_by_its_own_positions_alone(isa: str) -> None:
    """Two writers of neighbouring positions never touch the same byte."""
    rng = np.random.default_rng(5)
    for kv_type in KV_TYPES:
        for head_dim in (6, 64, 72):
            key, value = rng.standard_normal((2, head_dim)).astype(np.float32) + 1
            written = np.zeros(kv_block_bytes(kv_type, head_dim), np.int64)
            for position in range(KV_BLOCK):
                marks = []
                for fill in (0x00, 0xFF):
                    cache = KvHead.empty(kv_type, head_dim, KV_BLOCK)
                    cache.data[:] = fill
                    cpu.store_kv(cache, position, key, value, isa=isa)
                    marks.append(cache.data != fill)
                written += marks[0] | marks[1]
            # Keys of int8 are padded to a multiple of 4 values.
            padding = KV_BLOCK * (-head_dim % 4) if kv_type == "int8" else 0
            assert written.max() == 1
            assert (written == 0).sum() == padding


@pytest.mark.parametrize(("head_dim", "ratio"), [(64, 0.532), (128, 0.516)])
def test_int8_takes_about_half_the_bytes(head_dim: int, ratio: float) -> None:
    found = kv_block_bytes("int8", head_dim) / kv_block_bytes("f16", head_dim)
    assert found == pytest.approx(ratio, abs=1e-3)
