"""What a decoder is made of, as plain data, and the checks that let C++ trust it.

`Decoder` runs `check_model` before it hands anything over: the native layer sees only sizes that
agree and buffers that have exactly the bytes of their format.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qh_kernels.errors import KernelError

__all__ = [
    "RESCORED_ROWS",
    "DecoderShape",
    "DecoderWeights",
    "LayerShape",
    "LayerWeights",
    "Matrix",
    "check_model",
    "check_range",
    "check_shape",
    "mismatch",
    "weights_bytes",
]

F32 = NDArray[np.float32]

# Upper bounds of what is accepted; far above any real model, and low enough that no product of
# them overflows the 64-bit sizes of the native layer.
MAX_SIZE = 1 << 18
MAX_VOCAB = 1 << 24
MAX_LAYERS = 1 << 12
MAX_CONTEXT = 1 << 24
MAX_THREADS = 1 << 10
MAX_BATCH = 1 << 12

# kRescoredRows of the native layer: logits that are computed again from the head after a scan.
RESCORED_ROWS = 128

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
NORMS = ("attention_norm", "mlp_norm", "q_norm", "k_norm", "attention_sub_norm", "mlp_sub_norm")


@dataclass(frozen=True)
class Matrix:
    """One packed weight matrix.

    Attributes:
        format: name of the weight format ("f32", "f16", "bf16", "int8", "ternary", "int4_g32" ...).
        data: uint8, 1-D, C-contiguous, exactly the format's nbytes((rows, cols)); may be read-only
            and mapped. Dense formats: row-major; at least element-aligned.
        rows: out_features.
        cols: in_features.
    """

    format: str
    data: NDArray[np.uint8]
    rows: int
    cols: int


@dataclass(frozen=True)
class LayerShape:
    """What may differ between layers. sliding_window: positions attended to, or 0 for all."""

    sliding_window: int = 0


@dataclass(frozen=True)
class DecoderShape:
    """The numbers of a decoder; the runtime derives them from its DecoderSpec.

    Attributes:
        inv_freq: float32 (head_dim // 2,), rope frequencies with any scaling applied.
        activation: "silu" or "relu2".
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    activation: Literal["silu", "relu2"]
    inv_freq: F32
    layers: tuple[LayerShape, ...]

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int, int]:
        """The seven sizes, in the order the native layer takes them."""
        return (
            self.hidden_size,
            self.intermediate_size,
            self.num_attention_heads,
            self.num_key_value_heads,
            self.head_dim,
            self.vocab_size,
            len(self.layers),
        )


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one layer. Norms and biases are float32 1-D; None where the layer has none.

    q_norm, k_norm: (head_dim,), applied per head before rope (qwen3).
    attention_sub_norm: (num_attention_heads * head_dim,), before o (bitnet).
    mlp_sub_norm: (intermediate_size,), before down (bitnet).
    """

    q: Matrix
    k: Matrix
    v: Matrix
    o: Matrix
    gate: Matrix
    up: Matrix
    down: Matrix
    attention_norm: F32
    mlp_norm: F32
    q_bias: F32 | None = None
    k_bias: F32 | None = None
    v_bias: F32 | None = None
    o_bias: F32 | None = None
    gate_bias: F32 | None = None
    up_bias: F32 | None = None
    down_bias: F32 | None = None
    q_norm: F32 | None = None
    k_norm: F32 | None = None
    attention_sub_norm: F32 | None = None
    mlp_sub_norm: F32 | None = None


@dataclass(frozen=True)
class DecoderWeights:
    """All weights. A tied head passes the same Matrix object for embedding and head.

    head_scan: the head in fewer bits, or None. Where it is given, and activations are not exact,
    every logit comes from it, and those of the 128 largest are computed again from the head; of a
    packed head, those of the 16 rows that each is packed with.
    """

    embedding: Matrix
    head: Matrix
    final_norm: F32
    layers: Sequence[LayerWeights]
    head_scan: Matrix | None = None


def mismatch(name: str, expected: object, found: object, hint: str | None = None) -> KernelError:
    """The error of a value that is not what the native layer needs."""
    return KernelError(
        f"{name}: expected {expected}, found {found}",
        hint=hint,
        object=name,
        expected=expected,
        found=found,
    )


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Raises KernelError unless value is an integer in low..high."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise mismatch(name, "an integer", type(value).__name__)
    if not low <= value <= high:
        raise mismatch(name, f"{low}..{high}", int(value))


def check_shape(shape: DecoderShape) -> None:
    """Raises KernelError unless the numbers describe a decoder that the native layer can run."""
    check_range("hidden_size", shape.hidden_size, 1, MAX_SIZE)
    check_range("intermediate_size", shape.intermediate_size, 1, MAX_SIZE)
    check_range("num_attention_heads", shape.num_attention_heads, 1, MAX_SIZE)
    check_range("num_key_value_heads", shape.num_key_value_heads, 1, MAX_SIZE)
    check_range("head_dim", shape.head_dim, 2, MAX_SIZE)
    check_range("vocab_size", shape.vocab_size, 1, MAX_VOCAB)
    check_range("number of layers", len(shape.layers), 1, MAX_LAYERS)
    heads, kv_heads = shape.num_attention_heads, shape.num_key_value_heads
    if heads % kv_heads != 0:
        raise mismatch("num_attention_heads", f"a multiple of {kv_heads} key-value heads", heads)
    if shape.head_dim % 2 != 0:
        raise mismatch("head_dim", "an even number", shape.head_dim)
    check_range("num_attention_heads * head_dim", heads * shape.head_dim, 2, MAX_SIZE)
    eps = shape.rms_norm_eps
    if not (math.isfinite(eps) and 0.0 <= eps <= 1.0):
        raise mismatch("rms_norm_eps", "a number in 0..1", eps)
    if shape.activation not in ("silu", "relu2"):
        raise mismatch("activation", "silu or relu2", shape.activation)
    _check_vector("inv_freq", shape.inv_freq, shape.head_dim // 2)
    for index, layer in enumerate(shape.layers):
        check_range(f"layers.{index}.sliding_window", layer.sliding_window, 0, 1 << 40)


def check_model(shape: DecoderShape, weights: DecoderWeights) -> None:
    """Raises KernelError unless every weight has exactly the size and type that the shape needs.

    Facts: object (such as "layers.3.q"), expected, found.
    """
    check_shape(shape)
    hidden, inner = shape.hidden_size, shape.intermediate_size
    q_size = shape.num_attention_heads * shape.head_dim
    kv_size = shape.num_key_value_heads * shape.head_dim
    _check_matrix("embedding", weights.embedding, (shape.vocab_size, hidden))
    _check_matrix("head", weights.head, (shape.vocab_size, hidden))
    if weights.head_scan is not None:
        _check_matrix("head_scan", weights.head_scan, (shape.vocab_size, hidden))
    _check_vector("final_norm", weights.final_norm, hidden)
    if len(weights.layers) != len(shape.layers):
        raise mismatch("number of layers", len(shape.layers), len(weights.layers))
    matrices = {
        "q": (q_size, hidden),
        "k": (kv_size, hidden),
        "v": (kv_size, hidden),
        "o": (hidden, q_size),
        "gate": (inner, hidden),
        "up": (inner, hidden),
        "down": (hidden, inner),
    }
    norms = {
        "attention_norm": hidden,
        "mlp_norm": hidden,
        "q_norm": shape.head_dim,
        "k_norm": shape.head_dim,
        "attention_sub_norm": q_size,
        "mlp_sub_norm": inner,
    }
    for index, layer in enumerate(weights.layers):
        for name, expected in matrices.items():
            _check_matrix(f"layers.{index}.{name}", getattr(layer, name), expected)
            bias = getattr(layer, f"{name}_bias")
            if bias is not None:
                _check_vector(f"layers.{index}.{name}_bias", bias, expected[0])
        for name, length in norms.items():
            norm = getattr(layer, name)
            if norm is not None or name in ("attention_norm", "mlp_norm"):
                _check_vector(f"layers.{index}.{name}", norm, length)


def _check_matrix(name: str, matrix: Matrix, expected: tuple[int, int]) -> None:
    from qh_kernels import _native

    if not isinstance(matrix, Matrix):
        raise mismatch(name, "a Matrix", type(matrix).__name__)
    known = _native.format_names()
    if matrix.format not in known:
        raise mismatch(f"{name} format", f"one of {', '.join(known)}", matrix.format)
    if (matrix.rows, matrix.cols) != expected:
        raise mismatch(f"{name} shape", expected, (matrix.rows, matrix.cols))
    data = matrix.data
    _check_array(name, data, np.dtype(np.uint8))
    nbytes = _native.format_nbytes(matrix.format, *expected)
    if data.nbytes != nbytes:
        raise mismatch(f"{name} {matrix.format} data", f"{nbytes} bytes", f"{data.nbytes} bytes")
    alignment = {"f16": 2, "bf16": 2}.get(matrix.format, 4)
    address = data.ctypes.data
    if address % alignment != 0:
        raise mismatch(
            f"{name} data",
            f"an address that is a multiple of {alignment}",
            f"remainder {address % alignment}",
            "copy the data into an aligned array",
        )


def _check_vector(name: str, vector: Any, length: int) -> None:
    _check_array(name, vector, np.dtype(np.float32))
    if vector.shape != (length,):
        raise mismatch(f"{name} shape", (length,), vector.shape)
    if not vector.flags.aligned:
        raise mismatch(f"{name} data", "aligned float32", "an unaligned array")
    if not np.isfinite(vector).all():
        bad = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise mismatch(f"{name}[{bad}]", "a finite number", float(vector[bad]))


def _check_array(name: str, array: Any, dtype: np.dtype[Any]) -> None:
    if not isinstance(array, np.ndarray):
        raise mismatch(name, f"a NumPy array of {dtype}", type(array).__name__)
    if array.dtype != dtype or not array.dtype.isnative:
        raise mismatch(f"{name} dtype", str(dtype), str(array.dtype))
    if array.ndim != 1 or not array.flags.c_contiguous:
        raise mismatch(name, "one contiguous axis", f"shape {array.shape}, strides {array.strides}")


def weights_bytes(weights: DecoderWeights) -> int:
    """Bytes of all weights, a tied matrix counted once."""
    arrays: dict[int, int] = {}
    for matrix in (weights.embedding, weights.head, weights.head_scan):
        if matrix is not None:
            arrays[matrix.data.ctypes.data] = matrix.data.nbytes
    total = weights.final_norm.nbytes
    for layer in weights.layers:
        for name in LINEARS:
            data = getattr(layer, name).data
            arrays[data.ctypes.data] = data.nbytes
            bias = getattr(layer, f"{name}_bias")
            total += 0 if bias is None else bias.nbytes
        norms = (getattr(layer, name) for name in NORMS)
        total += sum(norm.nbytes for norm in norms if norm is not None)
    return total + sum(arrays.values())
