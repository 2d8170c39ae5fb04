"""The reference's operations against torch and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qh_runtime.reference import ops
from qh_runtime.reference.weights import CodedMatrix, quantized_matrix
from tests.support.tolerance import assert_within, dot_bound

RNG = np.random.default_rng(20261123)
FINITE = st.floats(-1e4, 1e4, width=32)


def _randn(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_rms_norm_equals_torch() -> None:
    x, weight = _randn(5, 37), _randn(37)
    expected = torch.nn.functional.rms_norm(torch.tensor(x), (37,), torch.tensor(weight), 1e-5)
    assert_within(ops.rms_norm(x, weight, 1e-5), expected.numpy(), 1e-6)


def test_rms_norm_of_zeros_is_zero() -> None:
    assert not ops.rms_norm(np.zeros((2, 8), np.float32), np.ones(8, np.float32), 1e-6).any()


@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_gated_equals_torch(activation: str) -> None:
    gate = np.concatenate([_randn(3, 50) * 4, np.full((3, 2), [-3e4, 3e4], np.float32)], axis=1)
    up = _randn(3, 52)
    t = torch.tensor(gate)
    act = torch.nn.functional.silu(t) if activation == "silu" else torch.relu(t).square()
    expected = (act * torch.tensor(up)).numpy()
    bound = 1e-6 * np.abs(expected) + 1e-30
    assert_within(ops.gated(activation, gate, up), expected, bound)  # type: ignore[arg-type]


@pytest.mark.parametrize("window", [0, 1, 3, 100])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_attention_equals_torch(window: int, kv_heads: int) -> None:
    tokens, positions, heads, dim = 4, 9, 6, 10
    q, k, v = _randn(tokens, heads, dim), _randn(positions, kv_heads, dim), None
    v = _randn(positions, kv_heads, dim)
    query = np.arange(positions - tokens, positions)[:, None]
    key = np.arange(positions)[None, :]
    mask = (key <= query) & ((key > query - window) if window else True)
    expected = torch.nn.functional.scaled_dot_product_attention(
        torch.tensor(q).transpose(0, 1),
        torch.tensor(np.repeat(k, heads // kv_heads, axis=1)).transpose(0, 1),
        torch.tensor(np.repeat(v, heads // kv_heads, axis=1)).transpose(0, 1),
        attn_mask=torch.tensor(mask),
    )
    expected = expected.transpose(0, 1).reshape(tokens, heads * dim).numpy()
    assert_within(ops.attention(q, k, v, window), expected, 2e-6)


def test_rope_keeps_lengths_and_depends_on_distance_only() -> None:
    inv_freq = (10000.0 ** -(np.arange(0, 16, 2) / 16)).astype(np.float32)
    q, k = _randn(1, 2, 16).astype(np.float64), _randn(1, 2, 16).astype(np.float64)

    def rotated(x: np.ndarray, position: int) -> np.ndarray:
        cos, sin = ops.rope_tables(inv_freq, position, 1, np.dtype(np.float64))
        return ops.apply_rope(x, cos, sin)

    near, far = (rotated(q, 7 + p) * rotated(k, 3 + p) for p in (0, 90))
    assert_within(near.sum(-1), far.sum(-1), 1e-4)
    assert_within(np.linalg.norm(rotated(q, 50), axis=-1), np.linalg.norm(q, axis=-1), 1e-12)
    assert_within(rotated(q, 0), q, 0.0)


@given(arrays.arrays(np.float32, (3, 40), elements=FINITE))
@settings(max_examples=100, deadline=None)
def test_token_codes_are_within_half_a_step(x: np.ndarray) -> None:
    found = ops.quantize_token(x)
    assert found.scales.shape == (3, 1)
    step = np.maximum(np.abs(x).max(-1, keepdims=True), 1e-5) / 127
    assert_within(found.codes * found.scales, x, np.broadcast_to(step * 0.50001, x.shape))


@given(arrays.arrays(np.float32, (2, 70), elements=FINITE))
@settings(max_examples=100, deadline=None)
def test_group_codes_are_within_half_a_step(x: np.ndarray) -> None:
    found = ops.quantize_groups(x)
    assert found.scales.shape == (2, 3)
    scales = np.repeat(found.scales, 32, axis=1)[:, :70]
    # Below the smallest normal float32 a scale loses bits.
    assert_within(found.codes * scales, x, scales * 0.50001 + 1e-38)


def test_ties_round_to_even() -> None:
    x = np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 63.5]], np.float32)
    assert ops.quantize_token(x).codes.tolist() == [[127, 0, 2, 2, 0, -2, 64]]
    assert ops.quantize_groups(x).codes.tolist() == [[127, 0, 2, 2, 0, -2, 64]]


def test_zero_inputs_have_zero_codes() -> None:
    x = np.zeros((1, 33), np.float32)
    for found in (ops.quantize_token(x), ops.quantize_groups(x)):
        assert not found.codes.any()
        assert np.isfinite(found.scales).all()


@pytest.mark.parametrize(
    "name", ["ternary", "int8", "int4_g32", "int4_g128", "nf4", "mxfp4", "nvfp4"]
)
@pytest.mark.parametrize("features", [32, 56, 300])
def test_quantized_product_is_the_product_of_dequantized_values(name: str, features: int) -> None:
    matrix = quantized_matrix(name, _randn(20, features))
    assert isinstance(matrix, CodedMatrix)
    x = _randn(3, features)
    quantize = ops.quantize_token if matrix.activations == "token" else ops.quantize_groups
    activations = quantize(x)
    size = activations.group_size
    inputs = activations.codes * np.repeat(activations.scales, size, axis=1)[:, :features]
    expected = inputs.astype(np.float64) @ matrix.values.astype(np.float64).T
    found = ops.linear_quantized(activations, matrix.codes, matrix.scales, matrix.group_size)
    assert_within(found, expected, dot_bound(matrix.values, inputs), label=name)
