"""nf4, mxfp4 and nvfp4 against libraries that share no code with this one."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from qh_runtime import formats
from qh_runtime.formats.families import e2m1


@pytest.fixture(scope="module")
def ml_dtypes() -> Any:
    return pytest.importorskip("ml_dtypes")


@pytest.fixture(scope="module")
def bitsandbytes() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("bitsandbytes.functional")


def weights(shape: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(20261124)
    rows = 10.0 ** rng.uniform(-3, 2, (shape[0], 1))
    return (rng.standard_normal(shape) * rows).astype(np.float32)


def test_e2m1_values_and_rounding(ml_dtypes: Any) -> None:
    kind = ml_dtypes.float4_e2m1fn
    codes = np.arange(16, dtype=np.uint8)
    np.testing.assert_array_equal(codes.view(kind).astype(np.float32), e2m1.VALUES)
    grid = np.arange(-1024, 1025, dtype=np.float32) / np.float32(128)
    found = np.asarray(e2m1.VALUES, np.float32)[e2m1.nearest(grid)]
    np.testing.assert_array_equal(found, grid.astype(kind).astype(np.float32))


def test_nf4_codes_and_weights_are_those_of_bitsandbytes(bitsandbytes: Any) -> None:
    torch = pytest.importorskip("torch")
    w = weights((48, 256))
    # Scales that float16 holds: the largest magnitude of each group of 64.
    grouped = w.reshape(-1, 64)
    largest = np.abs(grouped).argmax(axis=1)
    places = (np.arange(len(grouped)), largest)
    grouped[places] = grouped[places].astype(np.float16) * np.float32(1.01)
    grouped[places] = grouped[places].astype(np.float16)
    packed, state = bitsandbytes.quantize_4bit(torch.from_numpy(w), blocksize=64, quant_type="nf4")
    nf4 = formats.get("nf4")
    codes, scales = nf4.quantize(w)
    theirs = packed.numpy().reshape(-1)
    np.testing.assert_array_equal(codes.reshape(-1, 2) @ np.array([16, 1]), theirs)
    np.testing.assert_array_equal(scales.reshape(-1), state.absmax.numpy())
    expected = bitsandbytes.dequantize_4bit(packed, state).numpy()
    np.testing.assert_array_equal(nf4.unpack(nf4.pack(w), w.shape), expected)


def test_mxfp4_weights_are_those_of_transformers(ml_dtypes: Any) -> None:
    torch = pytest.importorskip("torch")
    mxfp4_of = pytest.importorskip("transformers.integrations.mxfp4")
    w = weights((40, 96))
    mxfp4 = formats.get("mxfp4")
    codes, scales = mxfp4.quantize(w)
    exponents = scales.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)
    np.testing.assert_array_equal(exponents, np.log2(scales).astype(int) + 127)
    blocks = (codes[:, 0::2] | codes[:, 1::2] << 4).reshape(1, 40, 3, 16)
    expected = mxfp4_of.convert_moe_packed_tensors(
        torch.from_numpy(blocks), torch.from_numpy(exponents[None]), dtype=torch.float32
    )
    found = mxfp4.unpack(mxfp4.pack(w), w.shape)
    np.testing.assert_array_equal(found, expected[0].numpy().T)
    # The same again from the types of a third library.
    values = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    wide = exponents.view(ml_dtypes.float8_e8m0fnu).astype(np.float32).repeat(32, axis=1)
    np.testing.assert_array_equal(found, values * wide)


def test_every_mxfp4_exponent(ml_dtypes: Any) -> None:
    exponents = np.arange(253, dtype=np.uint8)
    scales = exponents.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)[None]
    codes = np.full((1, 32 * 253), 1, np.uint8)
    mxfp4 = formats.get("mxfp4")
    found = mxfp4.unpack(mxfp4.pack_codes(codes, scales, codes.shape), codes.shape)
    np.testing.assert_array_equal(found[:, ::32], scales * np.float32(0.5))


def test_nvfp4_scales_and_weights(ml_dtypes: Any) -> None:
    w = weights((40, 96))
    nvfp4 = formats.get("nvfp4")
    codes, scales = nvfp4.quantize(w)
    row_scales = np.abs(w).max(axis=1, keepdims=True) / np.float32(2688)
    np.testing.assert_array_equal(scales[:, :1], row_scales)
    largest = np.abs(w.reshape(40, 6, 16)).max(axis=2)
    of_groups = (largest / (np.float32(6) * row_scales)).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(scales[:, 1:], of_groups.astype(np.float32))
    spread = (of_groups.astype(np.float32) * row_scales).repeat(16, axis=1)
    expected_codes = (w / spread).astype(ml_dtypes.float4_e2m1fn)
    values = expected_codes.astype(np.float32)
    np.testing.assert_array_equal(codes & 7, expected_codes.view(np.uint8) & 7)
    np.testing.assert_array_equal(nvfp4.unpack(nvfp4.pack(w), w.shape), values * spread)
