"""A second of arithmetic that shows whether the kernels compute what their formats say, here.

For each weight format a decoder is built whose blocks add nothing (their output matrices are zero),
so that its logits are one matrix product: head times the normalized embedding row. NumPy computes
the same from the format's specification and from the activation codes that the decoder recorded.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qh_runtime.architectures import DecoderSpec, decoder_shape, spec_from_config
from qh_runtime.errors import QhError
from qh_runtime.formats import base as formats
from qh_runtime.formats.base import WeightFormat
from qh_runtime.formats.families.codebook import CodebookFormat

if TYPE_CHECKING:
    from qh_kernels.decoder import DecoderWeights, Matrix, TraceRecord

__all__ = ["FormatCheck", "run_self_test"]

F64 = NDArray[np.float64]

# Sizes that are no multiples of tiles (16 rows), groups (32 inputs) or paddings (128).
_CONFIG = {
    "model_type": "llama",
    "hidden_size": 152,
    "num_hidden_layers": 1,
    "intermediate_size": 88,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 38,
    "vocab_size": 203,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
_TOKENS = (0, 101, 202)
# float32 sums of 152 products in any order are within 152 * 2**-24 = 9e-6 of the sum of their
# magnitudes; the norm before them, with its own sum and square root, about doubles that.
_BOUND = 2e-5


@dataclass(frozen=True)
class FormatCheck:
    """What came out for one format.

    Attributes:
        passed: worst_error <= bound, and nothing was raised.
        worst_error: largest |found - expected| over the sum of magnitudes of its products; without
            the rounding that is part of the format.
        problem: what was raised, None otherwise.
    """

    format: str
    isa: str
    passed: bool
    worst_error: float
    bound: float
    elapsed_s: float
    problem: str | None = None


def run_self_test(isa: str | None = None) -> tuple[FormatCheck, ...]:
    """Return one check per weight format with this instruction set; None takes the chosen one.

    Nothing is raised for a failing kernel.

    Raises:
        KernelError: the instruction set does not run here.
    """
    from qh_kernels import isa as instruction_sets

    name = instruction_sets.best() if isa is None else instruction_sets.require(isa)
    return tuple(_check(formats.get(x), name) for x in formats.names())


def _check(weight_format: WeightFormat, isa: str) -> FormatCheck:
    start = time.perf_counter()
    worst, problem = float("inf"), None
    try:
        # Both products that each kernel has: int8 activations, and float32 ones (--exact).
        weights = _weights(weight_format)
        worst = max(_worst_error(weight_format, weights, isa, exact) for exact in (False, True))
    except QhError as error:
        problem = str(error)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
    elapsed_s = time.perf_counter() - start
    passed = worst <= _BOUND
    return FormatCheck(weight_format.name, isa, passed, worst, _BOUND, elapsed_s, problem)


def _weights(weight_format: WeightFormat) -> DecoderWeights:
    """A block that adds nothing, and random matrices around it."""
    from qh_kernels.decoder import DecoderWeights, LayerWeights, Matrix

    spec = spec_from_config(_CONFIG)
    dice = np.random.default_rng(20261123)

    def matrix(rows: int, cols: int, scale: float) -> Matrix:
        weights = (dice.standard_normal((rows, cols)) * scale).astype(np.float32)
        return Matrix(weight_format.name, weight_format.pack(weights), rows, cols)

    layer = spec.layers[0]
    sizes = [(x.out_features, x.in_features) for x in layer.linears]
    scales = [0.1, 0.1, 0.1, 0.0, 0.1, 0.1, 0.0]  # q k v o gate up down
    linears = [matrix(*size, scale) for size, scale in zip(sizes, scales, strict=True)]
    if weight_format.family == "ternary":
        # Its scale is never zero, so the matrices that must add nothing are held in f32.
        for index in (3, 6):
            rows, cols = sizes[index]
            linears[index] = Matrix("f32", np.zeros(4 * rows * cols, np.uint8), rows, cols)
    q, k, v, o, gate, up, down = linears
    norm = dice.uniform(0.5, 1.5, spec.hidden_size).astype(np.float32)
    return DecoderWeights(
        embedding=matrix(spec.vocab_size, spec.hidden_size, 1.0),
        head=matrix(spec.vocab_size, spec.hidden_size, 0.1),
        final_norm=norm,
        layers=(LayerWeights(q, k, v, o, gate, up, down, attention_norm=norm, mlp_norm=norm),),
    )


def _worst_error(
    weight_format: WeightFormat, weights: DecoderWeights, isa: str, exact: bool
) -> float:
    from qh_kernels.decoder import Decoder

    spec = spec_from_config(_CONFIG)
    rounded: F64 | float = 0.0
    with Decoder(
        decoder_shape(spec),
        weights,
        context_length=64,
        threads=1,
        exact=exact,
        isa=isa,
        trace=True,
    ) as decoder:
        found = decoder.forward(_TOKENS).astype(np.float64)
        inputs = _inputs(spec, weights.embedding.data, weight_format, weights.final_norm)
        for record in decoder.trace():
            if record.name == "head":
                coded = _decoded(record.codes, record.scales)
                _check_codes(coded, inputs, record.scales)
                inputs = coded
                rounded = _rounded(weight_format, weights.head, record)
    head = _values(weight_format, weights.head.data, spec, coded=not exact)
    expected = inputs @ head.T
    magnitude = np.abs(inputs) @ np.abs(head).T
    error = np.maximum(np.abs(found - expected) - rounded, 0)
    return float(np.max(error / np.maximum(magnitude, 1e-30)))


def _rounded(weight_format: WeightFormat, head: Matrix, record: TraceRecord) -> F64 | float:
    """The error of products that the format allows on top."""
    if not isinstance(weight_format, CodebookFormat):
        return 0.0
    codes, scales = weight_format.unpack_codes(head.data, (head.rows, head.cols))
    rounding = weight_format.rounding(codes, scales)
    return 0.0 if rounding is None else rounding.bound(record.codes, record.scales)


def _values(
    weight_format: WeightFormat, data: NDArray[np.uint8], spec: DecoderSpec, *, coded: bool = False
) -> F64:
    """The weights; coded: those that products with int8 activations have."""
    shape = (spec.vocab_size, spec.hidden_size)
    if not coded or weight_format.family in ("dense", "codebook"):
        return weight_format.unpack(data, shape).astype(np.float64)
    codes, scales = weight_format.coded(*weight_format.unpack_codes(data, shape))
    spread = np.repeat(scales.astype(np.float64), weight_format.group_size or shape[1], axis=1)
    return np.asarray(codes * spread[:, : shape[1]], np.float64)


def _inputs(
    spec: DecoderSpec,
    embedding: NDArray[np.uint8],
    weight_format: WeightFormat,
    norm: NDArray[np.float32],
) -> F64:
    """(tokens, hidden_size): the normalized embedding rows."""
    rows = _values(weight_format, embedding, spec)[list(_TOKENS)]
    mean = np.mean(rows * rows, axis=1, keepdims=True)
    return np.asarray(rows / np.sqrt(mean + spec.rms_norm_eps) * norm, np.float64)


def _decoded(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> F64:
    """What the recorded codes (tokens, hidden_size) stand for; one scale per token or group."""
    width = codes.shape[1] if scales.shape[1] == 1 else 32
    spread = np.repeat(scales.astype(np.float64), width, axis=1)[:, : codes.shape[1]]
    return np.asarray(codes * spread, np.float64)


def _check_codes(coded: F64, inputs: F64, scales: NDArray[np.float32]) -> None:
    """Codes must be the nearest ones, up to float32 rounding of the values before them."""
    step = float(scales.max())
    off = float(np.max(np.abs(coded - inputs)))
    if off > 0.5001 * step:
        raise ValueError(f"activation codes are off by {off / step:.2f} steps, at most 0.5 allowed")
