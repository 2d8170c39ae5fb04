"""Logits of the C++ decoder against the NumPy reference; prefill against decode, bit for bit."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qh_kernels import isa
from qh_kernels.decoder import TraceRecord
from qh_runtime.reference.decoder import ActivationHook
from qh_runtime.reference.ops import QuantizedActivations
from tests.support.decoder_models import CASES, DecoderModel, make_model
from tests.support.tolerance import assert_within

ISAS = isa.available()
QUANTIZED = [name for name, case in CASES.items() if set(case.formats.values()) - {"f16", "bf16"}]
N_TOKENS = 23

# Which recorded input each linear layer reads.
READS = {"q": "q", "k": "q", "v": "q", "o": "o", "gate": "gate", "up": "gate", "down": "down"}


def replay_codes(model: DecoderModel, records: list[TraceRecord]) -> ActivationHook:
    """A hook that gives the reference the codes and scales that the C++ decoder used."""
    by_input = {(r.layer, r.name, r.per_token): r for r in records}

    def hook(name: str, activations: QuantizedActivations) -> QuantizedActivations:
        per_token = activations.group_size == activations.codes.shape[1]
        if name in ("head", "embedding"):
            key = (len(model.spec.layers), "head")
        else:
            _, layer, part = name.split(".")
            key = (int(layer), READS[part])
        found = by_input.get((*key, per_token)) or by_input[(*key, not per_token)]
        assert found.codes.shape == activations.codes.shape
        return QuantizedActivations(found.codes, found.scales, activations.group_size)

    return hook


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("isa_name", ISAS)
def test_exact_logits_equal_the_reference(name: str, isa_name: str) -> None:
    """Rounding only: no activation of these cases is quantized, unless it is the model's own."""
    model = make_model(name)
    tokens = model.tokens(N_TOKENS)
    decoder = model.decoder(exact=True, isa=isa_name, trace=True)
    found = decoder.forward(tokens)
    hook = replay_codes(model, decoder.trace())
    expected = model.reference(exact=True, hook=hook).forward(tokens)
    assert_within(found, expected, 1e-4, relative=True, label=f"{name} {isa_name}")


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("isa_name", ISAS)
def test_quantized_logits_equal_the_reference_that_replays_the_codes(
    name: str, isa_name: str
) -> None:
    model = make_model(name)
    tokens = model.tokens(N_TOKENS)
    decoder = model.decoder(kv_type="f32", isa=isa_name, trace=True)
    found = decoder.forward(tokens)
    hook = replay_codes(model, decoder.trace())
    expected = model.reference(hook=hook).forward(tokens)
    assert_within(found, expected, 1e-4, relative=True, label=f"{name} {isa_name}")


@pytest.mark.parametrize("name", QUANTIZED)
def test_recorded_codes_are_those_of_the_reference_within_one_step(name: str) -> None:
    """The replay above proves nothing if the codes themselves are wrong."""
    model = make_model(name)
    tokens = model.tokens(N_TOKENS)
    decoder = model.decoder(kv_type="f32", trace=True)
    decoder.forward(tokens)
    replay = replay_codes(model, decoder.trace())
    compared = []

    def compare(linear: str, own: QuantizedActivations) -> QuantizedActivations:
        recorded = replay(linear, own)
        steps = np.abs(recorded.codes.astype(np.int16) - own.codes.astype(np.int16))
        assert steps.max() <= 1, linear
        assert np.mean(steps != 0) < 0.01, linear
        np.testing.assert_allclose(recorded.scales, own.scales, rtol=1e-4)
        compared.append(linear)
        return recorded

    model.reference(hook=compare).forward(tokens)
    coded = [part for part in READS if model.case.format_of(part) not in ("f32", "f16", "bf16")]
    assert len(compared) >= len(coded) * model.case.num_hidden_layers


def test_float16_cache_is_rounded_once() -> None:
    model = make_model("llama")
    tokens = model.tokens(N_TOKENS)
    found = model.decoder(kv_type="f16").forward(tokens)
    expected = model.reference(kv_dtype=np.float16).forward(tokens)
    exact = model.reference().forward(tokens)
    # A value that rounds the other way moves the logits by far less than the rounding itself.
    assert_within(found, expected, 2e-3, relative=True, label="f16 cache")
    assert np.abs(found - exact).max() > np.abs(found - expected).max()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("isa_name", ISAS)
def test_prefill_equals_decode_bit_for_bit(name: str, isa_name: str) -> None:
    model = make_model(name)
    tokens = model.tokens(N_TOKENS)
    one_by_one = model.decoder(isa=isa_name)
    expected = np.stack([one_by_one.forward(tokens[i : i + 1])[0] for i in range(N_TOKENS)])
    for batch_tokens, threads in ((64, 1), (64, 3), (5, 2), (1, 4), (16, 2)):
        decoder = model.decoder(isa=isa_name, batch_tokens=batch_tokens, threads=threads)
        np.testing.assert_array_equal(decoder.forward(tokens), expected)
        np.testing.assert_array_equal(decoder.logits(), expected[-1])
        prefilled = model.decoder(isa=isa_name, batch_tokens=batch_tokens, threads=threads)
        assert prefilled.prefill(tokens[:7])
        assert prefilled.prefill(tokens[7:])
        np.testing.assert_array_equal(prefilled.logits(), expected[-1])


def test_int8_cache_is_rounded_as_defined() -> None:
    model = make_model("llama")
    tokens = model.tokens(N_TOKENS)
    expected = model.reference(kv_dtype=np.int8).forward(tokens)
    # Plain loops do not round queries and weights.
    plain = model.decoder(kv_type="int8", isa="scalar").forward(tokens)
    assert_within(plain, expected, 1e-4, relative=True, label="int8 cache")
    # Where they have 8 bits as well, that adds about as much as it costs to round the cache.
    rounded = np.abs(model.reference().forward(tokens) - expected).mean()
    for name in ISAS:
        found = model.decoder(kv_type="int8", isa=name).forward(tokens)
        assert np.abs(found - expected).mean() < 1.5 * rounded


@pytest.mark.parametrize("kv_type", ["f16", "f32", "int8"])
@pytest.mark.parametrize("window", [0, 300])
def test_long_contexts_are_split_without_changing_a_bit(kv_type: str, window: int) -> None:
    """Several segments of the cache, for one token and for batches that end anywhere."""
    model = make_model("llama", windows=(window, 0, window))
    tokens = model.tokens(700)
    one = model.decoder(kv_type=kv_type, context_length=700, batch_tokens=1)
    expected = one.forward(tokens)
    for threads, batch_tokens in ((1, 64), (3, 64), (2, 1), (2, 50)):
        decoder = model.decoder(
            kv_type=kv_type, context_length=700, threads=threads, batch_tokens=batch_tokens
        )
        np.testing.assert_array_equal(decoder.forward(tokens), expected)
    if kv_type == "f32":
        reference = model.reference().forward(tokens)
        assert_within(expected, reference, 1e-4, relative=True, label=kv_type)


@pytest.mark.parametrize("kv_type", ["f16", "f32", "int8"])
def test_large_steps_are_split_over_threads_without_changing_a_bit(kv_type: str) -> None:
    """Sizes above the threshold where a step is handed over to the workers, attention included."""
    model = make_model(
        "mixed",
        hidden_size=264,
        intermediate_size=520,
        num_attention_heads=6,
        head_dim=48,
        vocab_size=1003,
    )
    tokens = model.tokens(150)
    one = model.decoder(kv_type=kv_type, context_length=200)
    expected = one.forward(tokens)
    for threads in (2, 3, 4):
        decoder = model.decoder(kv_type=kv_type, context_length=200, threads=threads)
        np.testing.assert_array_equal(decoder.forward(tokens), expected)
        assert decoder.threads == threads


def test_forced_instruction_set_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    for name in ISAS:
        assert model.decoder(isa=name).isa == name
        monkeypatch.setenv(isa.FORCE_VARIABLE, name)
        assert model.decoder().isa == name


def test_forced_instruction_set_computes_in_its_own_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only its name: float32 sums in the plain order end in other bits than vector sums."""
    if len(ISAS) == 1:
        pytest.skip("this machine runs the plain instruction set only")
    model = make_model("llama", hidden_size=264)
    bits = {name: model.decoder(isa=name).forward(model.tokens(9)).tobytes() for name in ISAS}
    assert all(bits[name] != bits["scalar"] for name in ISAS if name != "scalar")
    for name in ISAS:
        monkeypatch.setenv(isa.FORCE_VARIABLE, name)
        assert model.decoder().forward(model.tokens(9)).tobytes() == bits[name]


def test_read_only_mapped_weights_are_used_in_place(tmp_path: Path) -> None:
    model = make_model("llama-int8")
    path = tmp_path / "head.bin"
    path.write_bytes(model.weights.head.data.tobytes())
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    head = replace(model.weights.head, data=mapped)
    expected = model.decoder().forward(model.tokens(4))
    moved = replace(model, weights=replace(model.weights, head=head))
    np.testing.assert_array_equal(moved.decoder().forward(model.tokens(4)), expected)


def test_weights_stay_alive_without_the_caller() -> None:
    model = make_model("llama")
    expected = model.decoder().forward(model.tokens(5))
    decoder = make_model("llama").decoder()
    gc.collect()
    ballast = [np.full(1 << 16, 7, np.uint8) for _ in range(64)]
    np.testing.assert_array_equal(decoder.forward(model.tokens(5)), expected)
    assert len(ballast) == 64
