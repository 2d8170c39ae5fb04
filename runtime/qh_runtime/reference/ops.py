"""The operations of a decoder in NumPy, one function each: the specification of kernels/src/ops.

Slow and plain. Arrays are (n_tokens, features); the dtype of the input (float32 or float64) is the
dtype of every intermediate value and of the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ACTIVATION_GROUP",
    "QuantizedActivations",
    "apply_rope",
    "attention",
    "gated",
    "linear",
    "linear_quantized",
    "quantize_groups",
    "quantize_kv",
    "quantize_token",
    "rms_norm",
    "rope_tables",
    "softmax",
]

Floats = NDArray[np.floating[Any]]

# Inputs that share one int8 activation scale (kActivationGroup in kernel_table.h).
ACTIVATION_GROUP = 32
# Smallest maximum that BitNet divides by, so that a row of zeros has a scale.
_TOKEN_FLOOR = 1e-5


@dataclass(frozen=True)
class QuantizedActivations:
    """int8 activations of n_tokens rows.

    Attributes:
        codes: (n_tokens, in_features) int8.
        scales: (n_tokens, n_groups); value = code * scale of its group; groups are consecutive
            and equally long, except for the last.
        group_size: inputs per scale.
    """

    codes: NDArray[np.int8]
    scales: Floats
    group_size: int


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis. Source: Zhang and Sennrich 2019."""
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True, dtype=x.dtype)
    normalized = x / np.sqrt(mean_square + x.dtype.type(eps))
    return np.asarray(normalized * weight.astype(x.dtype))


def rope_tables(
    inv_freq: NDArray[np.float32], first: int, n_tokens: int, dtype: np.dtype[Any]
) -> tuple[Floats, Floats]:
    """cos and sin, each (n_tokens, head_dim // 2), of positions first .. first + n_tokens - 1.

    The angle is a float32 product, as in transformers; its rounding is part of the definition.
    """
    positions = np.arange(first, first + n_tokens, dtype=np.float32)
    angles = (positions[:, None] * inv_freq[None, :]).astype(np.float64)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def apply_rope(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Rotates the half-split pairs (i, i + head_dim / 2) of x (n_tokens, n_heads, head_dim).

    Source: RoFormer (Su et al. 2021), equation 15, in Hugging Face's storage order.
    """
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    c, s = cos[:, None, :], sin[:, None, :]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


def softmax(x: Floats) -> Floats:
    """exp(x) / sum(exp(x)) over the last axis; -inf entries get probability 0."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def attention(q: Floats, keys: Floats, values: Floats, window: int) -> Floats:
    """Causal grouped-query attention of the last n_tokens positions.

    Args:
        q: (n_tokens, n_heads, head_dim), rotated.
        keys, values: (n_positions, n_kv_heads, head_dim); the last n_tokens belong to q.
        window: positions that a token attends to, itself included; 0 means all before it.

    Returns:
        (n_tokens, n_heads * head_dim). Query head h reads key-value head h // (n_heads // n_kv).
    """
    n_tokens, n_heads, head_dim = q.shape
    n_positions, n_kv_heads, _ = keys.shape
    query = np.arange(n_positions - n_tokens, n_positions)[:, None]
    key = np.arange(n_positions)[None, :]
    visible = key <= query
    if window:
        visible &= key > query - window
    scale = q.dtype.type(1.0 / np.sqrt(head_dim))
    out = np.empty((n_tokens, n_heads, head_dim), dtype=q.dtype)
    for head in range(n_heads):
        shared = head // (n_heads // n_kv_heads)
        scores = (q[:, head] @ keys[:, shared].T) * scale
        weights = softmax(np.where(visible, scores, -np.inf).astype(q.dtype))
        out[:, head] = weights @ values[:, shared]
    return out.reshape(n_tokens, n_heads * head_dim)


def gated(activation: Literal["silu", "relu2"], gate: Floats, up: Floats) -> Floats:
    """act(gate) * up. silu(g) = g / (1 + exp(-g)); relu2(g) = max(g, 0)^2."""
    if activation == "relu2":
        return np.asarray(np.square(np.maximum(gate, 0)) * up)
    # exp overflows to inf for very negative gates, and g / inf = -0 is the right limit.
    with np.errstate(over="ignore"):
        return np.asarray(gate / (1 + np.exp(-gate)) * up)


def linear(x: Floats, weights: NDArray[np.float32]) -> Floats:
    """y = W x for each row of x; W is (out_features, in_features)."""
    return np.asarray(x @ weights.astype(x.dtype).T)


def quantize_token(x: Floats) -> QuantizedActivations:
    """One scale per row. Source: BitNet b1.58 (Ma et al. 2024), equation 4; absmax, half to even.

    a = 127 / max(max|x|, 1e-5), code = clamp(round(x * a), -128, 127), scale = 1 / a.
    """
    kind = x.dtype.type
    largest = np.maximum(np.abs(x).max(axis=-1, keepdims=True), kind(_TOKEN_FLOOR))
    inverse = kind(127) / largest
    codes = np.clip(np.rint(x * inverse), -128, 127).astype(np.int8)
    return QuantizedActivations(codes, kind(1) / inverse, x.shape[-1])


def quantize_groups(x: Floats) -> QuantizedActivations:
    """One scale per ACTIVATION_GROUP inputs: scale = max|x| / 127, code = round(x / scale)."""
    kind = x.dtype.type
    n_tokens, features = x.shape
    padded = -(-features // ACTIVATION_GROUP) * ACTIVATION_GROUP
    groups = np.zeros((n_tokens, padded), dtype=x.dtype)
    groups[:, :features] = x
    groups = groups.reshape(n_tokens, -1, ACTIVATION_GROUP)
    scales = np.abs(groups).max(axis=-1) / kind(127)
    divisor = np.where(scales == 0, kind(1), scales)
    codes = np.clip(np.rint(groups / divisor[:, :, None]), -127, 127).astype(np.int8)
    codes = codes.reshape(n_tokens, padded)[:, :features]
    return QuantizedActivations(codes, scales, ACTIVATION_GROUP)


def quantize_kv(x: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Keys or values as an int8 KV cache holds them: codes of x (..., head_dim), scales (..., 1).

    scale = max|x| / 127; code = round(x / scale), half to even, 0 where scale is 0; float32.
    """
    narrow = x.astype(np.float32)
    scales = np.abs(narrow).max(axis=-1, keepdims=True) / np.float32(127)
    divisor = np.where(scales == 0, np.float32(1), scales)
    codes = np.clip(np.rint(narrow / divisor), -127, 127).astype(np.int8)
    return codes, scales.astype(x.dtype)


def linear_quantized(
    x: QuantizedActivations,
    codes: NDArray[np.integer] | NDArray[np.float32],
    scales: NDArray[np.float32],
    weight_group: int,
) -> Floats:
    """y = W x from int8 activations and integer weights, with exact integer dot products.

    Args:
        codes: (out_features, in_features); the integer that a weight's scale multiplies.
        scales: (out_features, n_groups), one per weight_group consecutive inputs.

    Returns:
        (n_tokens, out_features): the sum over spans that share both scales of
        (integer dot product) * (activation scale) * (weight scale).
    """
    n_tokens, features = x.codes.shape
    dtype = x.scales.dtype
    # Both group sizes are powers of two or span the whole row, so the smaller divides the larger.
    span = min(x.group_size, weight_group)
    out = np.zeros((n_tokens, codes.shape[0]), dtype=dtype)
    for first in range(0, features, span):
        last = min(first + span, features)
        # float64 holds every int8 dot product of this length exactly, and multiplies faster.
        dots = x.codes[:, first:last].astype(np.float64) @ codes[:, first:last].astype(np.float64).T
        activation_scale = x.scales[:, first // x.group_size]
        weight_scale = scales[:, first // weight_group].astype(dtype)
        out += dots.astype(dtype) * activation_scale[:, None] * weight_scale[None, :]
    return out
