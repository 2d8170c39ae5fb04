"""The C++ decoder: a whole token step (embedding to sampled token) without Python in it.

Weights arrive as checked NumPy arrays in the layouts of `qh_runtime.formats`; the decoder keeps
references to them and copies none of the matrices, so mapped files stay mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["DecoderShape", "DecoderWeights", "LayerShape", "LayerWeights", "Matrix"]

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Matrix:
    """One packed weight matrix.

    Attributes:
        format: name of the weight format ("f32", "f16", "bf16", "int8", "ternary", "int4_g32", ...).
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
    """All weights. A tied head passes the same Matrix object for embedding and head."""

    embedding: Matrix
    head: Matrix
    final_norm: F32
    layers: Sequence[LayerWeights]
