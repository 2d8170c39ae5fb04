"""Decoders in the shapes of known models with random weights, made as fast as memory is written.

A packed matrix is the packed rows of its chunks one after the other, so one chunk of real random
weights, repeated, is a valid matrix of any size. The time of a kernel does not depend on values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qh_kernels.decoder import RESCORED_ROWS, DecoderWeights, LayerWeights, Matrix
from qh_runtime.architectures import DecoderSpec, LayerSpec, LinearSpec, spec_from_config
from qh_runtime.formats import base as formats
from qh_runtime.planner.plan import WeightFormats

__all__ = ["SHAPES", "BenchModel", "BenchShape", "matrix_bytes", "random_model"]

# Rows that are really drawn; a multiple of the tile, and enough that no row repeats in a cache.
_CHUNK_ROWS = 64
_ALIGNMENT = 64


@dataclass(frozen=True)
class BenchShape:
    """A model to imitate. formats: as our loader holds that model's weights."""

    name: str
    config: Mapping[str, Any]
    formats: WeightFormats

    @property
    def spec(self) -> DecoderSpec:
        """The decoder of the config."""
        return spec_from_config(self.config)


SHAPES: Mapping[str, BenchShape] = {
    shape.name: shape
    for shape in (
        # The sizes of microsoft/bitnet-b1.58-2B-4T; embedding and head are one bf16 matrix there.
        BenchShape(
            "bitnet-2b-4t",
            {
                "architectures": ["BitNetForCausalLM"],
                "model_type": "bitnet",
                "hidden_size": 2560,
                "num_hidden_layers": 30,
                "intermediate_size": 6912,
                "num_attention_heads": 20,
                "num_key_value_heads": 5,
                "vocab_size": 128256,
                "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
                "hidden_act": "relu2",
                "tie_word_embeddings": True,
                "rope_theta": 500000.0,
            },
            WeightFormats("ternary", "bf16", "bf16", head_scan="int4_g32"),
        ),
        # The sizes of Llama-3.2-1B after --pack int4_g32.
        BenchShape(
            "llama-3.2-1b",
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "hidden_size": 2048,
                "num_hidden_layers": 16,
                "intermediate_size": 8192,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 64,
                "vocab_size": 128256,
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-5,
                "hidden_act": "silu",
                "tie_word_embeddings": True,
                "rope_theta": 500000.0,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 32.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            WeightFormats("int4_g32", "int8", "int8", head_scan="int4_g32"),
        ),
    )
}


@dataclass(frozen=True)
class BenchModel:
    """Weights ready for a decoder.

    Attributes:
        format: of the linear layers, as shown.
        token_bytes: weights that one decode step reads: every linear layer, the head or its scan,
            and the norms once. The embedding row and the KV cache come on top.
    """

    name: str
    spec: DecoderSpec
    weights: DecoderWeights
    format: str
    token_bytes: int


def random_model(shape: BenchShape) -> BenchModel:
    """Return the shape with random weights in memory."""
    dice = np.random.default_rng(20261123)
    spec = shape.spec

    def matrix(linear: LinearSpec, name: str) -> Matrix:
        data = matrix_bytes(name, linear.out_features, linear.in_features, dice)
        return Matrix(name, data, linear.out_features, linear.in_features)

    embedding = matrix(
        LinearSpec(spec.embedding, spec.vocab_size, spec.hidden_size), shape.formats.embedding
    )
    head = embedding if spec.tied_head else matrix(spec.head, shape.formats.head)
    layers = []
    for layer in spec.layers:
        linears = [matrix(x, shape.formats.linear) for x in layer.linears]
        layers.append(_layer(layer, spec, linears))
    scan = None if shape.formats.head_scan is None else matrix(spec.head, shape.formats.head_scan)
    weights = DecoderWeights(embedding, head, _ones(spec.hidden_size), layers, scan)
    return BenchModel(shape.name, spec, weights, shape.formats.linear, token_bytes(weights))


def token_bytes(weights: DecoderWeights) -> int:
    """Return the bytes of weights that one decode step reads."""
    head, scan = weights.head, weights.head_scan
    total = weights.final_norm.nbytes
    if scan is None:
        total += head.data.nbytes
    else:
        # The rows that are computed again; of a packed head a tile each, where they are far apart.
        rows = RESCORED_ROWS
        if formats.get(head.format).family != "dense":
            rows *= formats.TILE_ROWS
        total += scan.data.nbytes + min(rows, head.rows) * head.data.nbytes // head.rows
    for layer in weights.layers:
        for value in vars(layer).values():
            if isinstance(value, Matrix):
                total += value.data.nbytes
            elif value is not None:
                total += value.nbytes
    return total


def matrix_bytes(
    format_name: str, rows: int, cols: int, dice: np.random.Generator
) -> NDArray[np.uint8]:
    """Return a valid packed matrix of random weights, uint8, 64-byte-aligned."""
    weight_format = formats.get(format_name)
    out = aligned(weight_format.nbytes((rows, cols)))
    drawn = min(rows, _CHUNK_ROWS)
    chunk = weight_format.pack((dice.standard_normal((drawn, cols)) * 0.02).astype(np.float32))
    whole = len(out) // len(chunk) * len(chunk)
    out[:whole].reshape(-1, len(chunk))[:] = chunk
    if whole < len(out):
        last = (dice.standard_normal((rows % _CHUNK_ROWS, cols)) * 0.02).astype(np.float32)
        out[whole:] = weight_format.pack(last)
    return out


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """Return uint8 (nbytes,) that begins at a cache line."""
    block = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -block.ctypes.data % _ALIGNMENT
    return block[start : start + nbytes]


def _layer(layer: LayerSpec, spec: DecoderSpec, linears: list[Matrix]) -> LayerWeights:
    q, k, v, o, gate, up, down = linears

    def norm(name: str | None, size: int) -> NDArray[np.float32] | None:
        return None if name is None else _ones(size)

    return LayerWeights(
        q=q,
        k=k,
        v=v,
        o=o,
        gate=gate,
        up=up,
        down=down,
        attention_norm=_ones(spec.hidden_size),
        mlp_norm=_ones(spec.hidden_size),
        q_norm=norm(layer.q_norm, spec.head_dim),
        k_norm=norm(layer.k_norm, spec.head_dim),
        attention_sub_norm=norm(layer.attention_sub_norm, q.rows),
        mlp_sub_norm=norm(layer.mlp_sub_norm, gate.rows),
    )


def _ones(size: int) -> NDArray[np.float32]:
    return np.ones(size, np.float32)
