"""Whatever does not fit together is refused before C++ sees it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qh_kernels.decoder import LayerShape, LayerWeights, Matrix
from qh_kernels.errors import KernelError
from tests.support.decoder_models import DecoderModel, make_model

MODEL = make_model("mixed")


def with_layer(**changes: Any) -> DecoderModel:
    layer = replace(MODEL.weights.layers[1], **changes)
    layers = [MODEL.weights.layers[0], layer, MODEL.weights.layers[2]]
    return replace(MODEL, weights=replace(MODEL.weights, layers=layers))


def refused(model: DecoderModel, **options: Any) -> str:
    with pytest.raises(KernelError) as raised:
        model.decoder(**options)
    facts = raised.value.facts
    assert {"object", "expected", "found"} <= set(facts)
    return str(facts["object"])


def shifted(array: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """The same bytes at an odd address."""
    room = np.empty(array.nbytes + 1, np.uint8)
    view = room[1:]
    view[:] = array.view(np.uint8)
    return view


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", -56),
        ("hidden_size", 1 << 40),
        ("hidden_size", 56.0),
        ("intermediate_size", 0),
        ("num_attention_heads", 0),
        ("num_attention_heads", 3),
        ("num_key_value_heads", 0),
        ("num_key_value_heads", 3),
        ("head_dim", 13),
        ("head_dim", 0),
        ("vocab_size", 0),
        ("vocab_size", 1 << 32),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", -1e-5),
        ("rms_norm_eps", float("inf")),
        ("activation", "gelu"),
        ("inv_freq", np.zeros(3, np.float32)),
        ("inv_freq", np.full(7, np.nan, np.float32)),
        ("inv_freq", np.zeros(7, np.float64)),
        ("layers", ()),
        ("layers", (LayerShape(),) * 2),
        ("layers", (LayerShape(-1),) * 3),
    ],
)
def test_bad_numbers(field: str, value: object) -> None:
    refused(replace(MODEL, shape=replace(MODEL.shape, **{field: value})))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("context_length", 0),
        ("context_length", -1),
        ("context_length", 1 << 30),
        ("context_length", True),
        ("context_length", 10.0),
        ("threads", 0),
        ("threads", 100_000),
        ("batch_tokens", 0),
        ("batch_tokens", 1 << 20),
        ("kv_type", "q4"),
    ],
)
def test_bad_options(option: str, value: object) -> None:
    assert refused(MODEL, **{option: value}) == option


def test_unknown_instruction_set() -> None:
    with pytest.raises(KernelError) as raised:
        MODEL.decoder(isa="mmx")
    assert raised.value.facts["isa"] == "mmx"


@pytest.mark.parametrize("part", ["q", "k", "v", "o", "gate", "up", "down"])
def test_bad_matrices(part: str) -> None:
    good: Matrix = getattr(MODEL.weights.layers[1], part)
    name = f"layers.1.{part}"
    bad = {
        f"{name} shape": [
            replace(good, rows=good.rows + 1),
            replace(good, cols=good.cols - 1),
            replace(good, rows=good.cols + 1, cols=good.rows),
        ],
        f"{name} format": [replace(good, format="int3"), replace(good, format="")],
        f"{name} {good.format} data": [
            replace(good, data=good.data[:-1]),
            replace(good, data=np.zeros(good.data.nbytes + 64, np.uint8)),
            replace(good, data=np.zeros(0, np.uint8)),
        ],
        f"{name} dtype": [replace(good, data=good.data.view(np.int8))],
        f"{name} data": [replace(good, data=shifted(good.data))],
        name: [
            replace(good, data=np.zeros((good.data.nbytes, 2), np.uint8)[:, 0]),
            replace(good, data=good.data.reshape(1, -1)),
            replace(good, data=good.data.tobytes()),
            None,
        ],
    }
    for expected, matrices in bad.items():
        for matrix in matrices:
            assert refused(with_layer(**{part: matrix})) == expected


@pytest.mark.parametrize("field", ["attention_norm", "q_norm", "k_bias", "mlp_sub_norm"])
def test_bad_vectors(field: str) -> None:
    length = {"attention_norm": 72, "q_norm": 14, "k_bias": 28, "mlp_sub_norm": 104}[field]
    good = np.ones(length, np.float32)
    with_layer(**{field: good}).decoder()
    name = f"layers.1.{field}"
    infinite = good.copy()
    infinite[3] = np.inf
    bad = {
        f"{name} dtype": [good.astype(np.float64), good.astype(">f4"), good.astype(np.float16)],
        f"{name} shape": [np.ones(length + 1, np.float32), np.ones(0, np.float32)],
        f"{name} data": [shifted(good).view(np.float32)],
        f"{name}[3]": [infinite],
        name: [np.ones((length, 2), np.float32)[:, 0], list(good)],
    }
    for expected, vectors in bad.items():
        for vector in vectors:
            assert refused(with_layer(**{field: vector})) == expected


@pytest.mark.parametrize("field", ["attention_norm", "mlp_norm"])
def test_missing_norms(field: str) -> None:
    assert refused(with_layer(**{field: None})) == f"layers.1.{field}"


def test_bad_embedding_head_and_final_norm() -> None:
    weights = MODEL.weights
    embedding = replace(weights.embedding, rows=130)
    assert refused(replace(MODEL, weights=replace(weights, embedding=embedding))) == (
        "embedding shape"
    )
    head = replace(weights.head, data=weights.head.data[:-2])
    assert refused(replace(MODEL, weights=replace(weights, head=head))) == "head bf16 data"
    norm = np.ones(71, np.float32)
    assert refused(replace(MODEL, weights=replace(weights, final_norm=norm))) == "final_norm shape"
    fewer: list[LayerWeights] = list(weights.layers[:2])
    assert refused(replace(MODEL, weights=replace(weights, layers=fewer))) == "number of layers"
