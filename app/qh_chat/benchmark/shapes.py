"""Decoders in the shapes of known models with random weights, made as fast as memory is written.

A packed matrix is the packed rows of its chunks one after the other, so one chunk of real random
weights, repeated, is a valid matrix of any size; and matrices of one size are copies of each other,
at places of their own. The time of a kernel does not depend on values.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qh_kernels.decoder import RESCORED_ROWS, DecoderWeights, LayerWeights, Matrix
from qh_runtime.architectures import DecoderSpec, LayerSpec, spec_from_config
from qh_runtime.formats import base as formats
from qh_runtime.formats.families.codebook import CodebookFormat
from qh_runtime.planner.plan import WeightFormats

__all__ = [
    "SHAPES",
    "BenchModel",
    "BenchShape",
    "Tables",
    "layer_bytes",
    "matrix_bytes",
    "random_model",
    "random_tables",
    "token_bytes",
]

# Rows that are really drawn; a multiple of the tile, and enough that no row repeats in a cache.
_CHUNK_ROWS = 64
_ALIGNMENT = 64
_PAGE_BYTES = 2 << 20


@dataclass(frozen=True)
class BenchShape:
    """A model to imitate.

    Attributes:
        formats: as our loader holds that model's weights.
        whole_layers: of the model, where the config has fewer of them; 0 is all.
    """

    name: str
    config: Mapping[str, Any]
    formats: WeightFormats
    whole_layers: int = 0

    @property
    def spec(self) -> DecoderSpec:
        """The decoder of the config."""
        return spec_from_config(self.config)

    @property
    def label(self) -> str:
        """The name, and how much of the model it is where that is a part."""
        if not self.whole_layers:
            return self.name
        return f"{self.name} ({self.config['num_hidden_layers']} of {self.whole_layers} layers)"

    def with_linear(self, format_name: str) -> BenchShape:
        """The shape with linear layers in this format."""
        return replace(self, formats=replace(self.formats, linear=format_name))

    def part(self, least_bytes: int) -> BenchShape:
        """The first layers, so many that they take least_bytes; the shape itself if none are left.

        A part has one matrix as embedding and head, to be smaller.
        """
        layers = -(-least_bytes // layer_bytes(self))
        whole = int(self.config["num_hidden_layers"])
        if layers >= whole:
            return self
        config = {**self.config, "num_hidden_layers": layers, "tie_word_embeddings": True}
        return replace(self, config=config, whole_layers=whole)


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
        # The sizes of Meta-Llama-3-8B after --pack int4_g32.
        BenchShape(
            "llama-3-8b",
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "hidden_size": 4096,
                "num_hidden_layers": 32,
                "intermediate_size": 14336,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "vocab_size": 128256,
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-5,
                "hidden_act": "silu",
                "tie_word_embeddings": False,
                "rope_theta": 500000.0,
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


@dataclass(frozen=True)
class Tables:
    """Embedding, head and scan of a shape: the same for every format of its linear layers."""

    embedding: Matrix
    head: Matrix
    head_scan: Matrix | None


def random_tables(shape: BenchShape) -> Tables:
    """Return the shape's tables with random weights."""
    spec = shape.spec
    stock = _Stock()
    held = shape.formats
    embedding = stock.matrix(held.embedding, spec.vocab_size, spec.hidden_size)
    head = embedding
    if not spec.tied_head:
        head = stock.matrix(held.head, spec.vocab_size, spec.hidden_size)
    scan = held.head_scan
    head_scan = None if scan is None else stock.matrix(scan, spec.vocab_size, spec.hidden_size)
    return Tables(embedding, head, head_scan)


def random_model(shape: BenchShape, tables: Tables | None = None) -> BenchModel:
    """Return the shape with random weights in memory.

    Args:
        tables: those of a model of the same shape, to be shared; None makes new ones.

    Raises:
        MemoryError: the system refuses the memory.
    """
    spec = shape.spec
    held = random_tables(shape) if tables is None else tables
    stock = _Stock()
    layers = []
    for layer in spec.layers:
        linears = [
            stock.matrix(shape.formats.linear, x.out_features, x.in_features) for x in layer.linears
        ]
        layers.append(_layer(layer, spec, linears))
    weights = DecoderWeights(
        held.embedding, held.head, _ones(spec.hidden_size), layers, held.head_scan
    )
    return BenchModel(shape.label, spec, weights, shape.formats.linear, token_bytes(weights))


def layer_bytes(shape: BenchShape) -> int:
    """Return the packed bytes of one decoder layer's linear layers."""
    weight_format = formats.get(shape.formats.linear)
    linears = shape.spec.layers[0].linears
    return sum(weight_format.nbytes((x.out_features, x.in_features)) for x in linears)


class _Stock:
    """Matrices of random weights, in blocks of large pages as the loader's are."""

    def __init__(self) -> None:
        self._dice = np.random.default_rng(20261123)
        self._drawn: dict[tuple[str, int, int], NDArray[np.uint8]] = {}
        self._block = np.empty(0, np.uint8)

    def matrix(self, name: str, rows: int, cols: int) -> Matrix:
        """Return a matrix with memory of its own."""
        size = formats.get(name).nbytes((rows, cols))
        key = (name, rows, cols)
        data = self._room(size)
        if key in self._drawn:
            data[:] = self._drawn[key]
        else:
            matrix_bytes(name, rows, cols, self._dice, data)
            self._drawn[key] = data
        return Matrix(name, data, rows, cols)

    def _room(self, size: int) -> NDArray[np.uint8]:
        taken = -(-size // _ALIGNMENT) * _ALIGNMENT
        if taken > len(self._block):
            self._block = _large_pages(max(taken, 64 << 20))
        room, self._block = self._block[:size], self._block[taken:]
        return room


def _large_pages(nbytes: int) -> NDArray[np.uint8]:
    """Memory that begins on a large page; in small ones where the system has no large."""
    size = -(-nbytes // _PAGE_BYTES) * _PAGE_BYTES + _PAGE_BYTES
    private = {} if os.name == "nt" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    try:
        memory = mmap.mmap(-1, size, **private)
    except OSError as error:
        raise MemoryError(f"{size} bytes: {error.strerror}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    skip = -whole.ctypes.data % _PAGE_BYTES
    return whole[skip : skip + size - _PAGE_BYTES]


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
    format_name: str,
    rows: int,
    cols: int,
    dice: np.random.Generator,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Return a valid packed matrix of random weights, uint8.

    Args:
        out: uint8 of the matrix's size to write to; None makes one that begins at a cache line.
    """
    weight_format = formats.get(format_name)
    if out is None:
        out = aligned(weight_format.nbytes((rows, cols)))
    if isinstance(weight_format, CodebookFormat):
        weight_format.fill_random(out, (rows, cols), dice, 0.02)
        return out
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
