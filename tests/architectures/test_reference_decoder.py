"""The reference decoder with itself: cache, windows, precision, hooks and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qh_runtime.architectures import DecoderSpec, spec_from_config
from qh_runtime.errors import CheckpointError, SessionError
from qh_runtime.reference.decoder import ReferenceDecoder, Tape, record, replay
from qh_runtime.reference.weights import ReferenceWeights, quantized_weights
from tests.support.tiny_checkpoint import TinyCheckpoints, reference_weights
from tests.support.tolerance import assert_within

TOKENS = [0, *np.random.default_rng(11).integers(2, 131, size=23).tolist()]


def _parts(tiny: TinyCheckpoints, name: str) -> tuple[DecoderSpec, ReferenceWeights]:
    folder = tiny.folder(name)
    spec = spec_from_config(json.loads((folder / "config.json").read_text()))
    return spec, reference_weights(folder)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "qwen3-window", "llama-llama3-rope"])
def test_steps_equal_one_pass(tiny: TinyCheckpoints, name: str) -> None:
    spec, weights = _parts(tiny, name)
    expected = ReferenceDecoder(spec, weights, dtype=np.float64).forward(TOKENS)
    decoder = ReferenceDecoder(spec, weights, dtype=np.float64)
    rows = [*decoder.forward(TOKENS[:5]), *(decoder.step(token) for token in TOKENS[5:])]
    assert decoder.n_positions == len(TOKENS)
    assert_within(np.stack(rows), expected, 1e-10)
    decoder.reset()
    assert decoder.n_positions == 0
    assert_within(decoder.forward(TOKENS), expected, 0.0)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_float32_is_close_to_float64(tiny: TinyCheckpoints, name: str) -> None:
    spec, weights = _parts(tiny, name)
    expected = ReferenceDecoder(spec, weights, dtype=np.float64).forward(TOKENS)
    found = ReferenceDecoder(spec, weights).forward(TOKENS)
    assert found.dtype == np.float32
    assert_within(found, expected, 2e-5, relative=True)


def test_a_window_forgets_what_is_before_it(tiny: TinyCheckpoints) -> None:
    """Three layers of window 7 reach 18 tokens back, not further."""
    spec, weights = _parts(tiny, "mistral-window")
    far, near = list(TOKENS), list(TOKENS)
    far[len(TOKENS) - 1 - 19] = 5
    near[len(TOKENS) - 1 - 18] = 5
    expected, other, changed = (
        ReferenceDecoder(spec, weights, dtype=np.float64).forward(tokens)[-1]
        for tokens in (TOKENS, far, near)
    )
    np.testing.assert_array_equal(other, expected)
    assert np.abs(changed - expected).max() > 1e-9


@pytest.mark.parametrize("format_name", ["int8", "int4_g32", "nf4", "mxfp4", "nvfp4", "ternary"])
def test_replayed_codes_give_the_same_logits(tiny: TinyCheckpoints, format_name: str) -> None:
    spec, weights = _parts(tiny, "llama")
    packed = quantized_weights(spec, weights, format_name, others=[("lm_head", "int8")])
    tape: Tape = []
    expected = ReferenceDecoder(spec, packed, hook=record(tape)).forward(TOKENS)
    assert len(tape) == 7 * spec.num_hidden_layers + 1
    found = ReferenceDecoder(spec, packed, hook=replay(tape)).forward(TOKENS)
    assert_within(found, expected, 0.0)
    for _, activations in tape:
        activations.codes[...] = 0
    silent = ReferenceDecoder(spec, packed, hook=replay(tape)).forward(TOKENS)
    assert not silent.any()


def test_quantization_costs_what_its_bits_say(tiny: TinyCheckpoints) -> None:
    spec, weights = _parts(tiny, "llama")
    expected = ReferenceDecoder(spec, weights).forward(TOKENS)
    errors = [
        float(
            np.abs(
                ReferenceDecoder(spec, quantized_weights(spec, weights, name)).forward(TOKENS)
                - expected
            ).mean()
        )
        for name in ("f16", "bf16", "int8", "int4_g32", "ternary")
    ]
    assert errors == sorted(errors)
    assert errors[0] > 0


@pytest.mark.parametrize("tokens", [[], [-1], [131], [3, 999]])
def test_bad_tokens_are_refused(tiny: TinyCheckpoints, tokens: list[int]) -> None:
    spec, weights = _parts(tiny, "llama")
    with pytest.raises(SessionError):
        ReferenceDecoder(spec, weights).forward(tokens)


def test_missing_and_misshapen_tensors_are_named(tiny: TinyCheckpoints) -> None:
    spec, weights = _parts(tiny, "llama-biases")
    name = "model.layers.1.self_attn.k_proj"
    for changed, tensor in (
        (ReferenceWeights({**weights.matrices, name: weights.matrices["lm_head"]}, {}), None),
        (
            ReferenceWeights(
                {k: v for k, v in weights.matrices.items() if k != name}, weights.vectors
            ),
            name,
        ),
        (
            ReferenceWeights(
                weights.matrices,
                {k: v for k, v in weights.vectors.items() if k != f"{name}.bias"},
            ),
            f"{name}.bias",
        ),
    ):
        with pytest.raises(CheckpointError) as caught:
            ReferenceDecoder(spec, changed).forward(TOKENS)
        assert tensor is None or caught.value.facts["tensor"] == tensor
