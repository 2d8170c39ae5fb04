"""The C++ decoder, through the real loader, against transformers and the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest

from qh_kernels import isa
from qh_runtime.reference.decoder import Tape, replay
from qh_runtime.reference.ops import QuantizedActivations
from tests.support.native_model import NativeModel, tape_of
from tests.support.tiny_checkpoint import (
    BITNET_ENCODINGS,
    CASES,
    TinyCheckpoints,
    load_oracle,
    oracle_logits,
    oracle_tape,
)
from tests.support.tolerance import assert_within

DENSE = [name for name in CASES if "bitnet" not in name and "ternary" not in name]
TERNARY = [name for name in CASES if name not in DENSE]
ENCODED = [(name, encoding) for name in TERNARY for encoding in BITNET_ENCODINGS]
PACKED = ("int8", "int4_g32", "int4_g128", "nf4", "mxfp4", "nvfp4")
TOKENS = [0, *np.random.default_rng(7).integers(2, 131, size=47).tolist()]


@pytest.fixture(params=isa.available())
def isa_name(request: pytest.FixtureRequest) -> str:
    """Each instruction set that runs here."""
    return str(request.param)


@pytest.mark.parametrize("name", DENSE)
def test_f32_equals_transformers(tiny: TinyCheckpoints, name: str, isa_name: str) -> None:
    folder = tiny.folder(name)
    expected = oracle_logits(load_oracle(folder), TOKENS)
    with NativeModel.from_folder(folder).decoder(exact=True, isa=isa_name) as decoder:
        assert decoder.isa == isa_name
        found = decoder.forward(TOKENS)
    assert_within(found, expected, 1e-4, relative=True, label=f"{name} {isa_name}")


@pytest.mark.parametrize("name", ["llama-llama3-rope", "llama-linear-rope", "mistral-window"])
def test_far_positions_equal_transformers(tiny: TinyCheckpoints, name: str) -> None:
    """At position 1500 a last-bit error of a frequency turns an angle by 1e-4."""
    folder = tiny.folder(name)
    tokens = np.random.default_rng(8).integers(2, 131, size=1500).tolist()
    expected = oracle_logits(load_oracle(folder), tokens)
    with NativeModel.from_folder(folder).decoder(exact=True, context_length=1500) as decoder:
        found = decoder.forward(tokens)
    assert_within(found, expected, 1e-3, relative=True, label=name)


@pytest.mark.parametrize("pack", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["llama-biases", "qwen3"])
def test_half_formats_equal_the_reference(
    tiny: TinyCheckpoints, name: str, pack: str, isa_name: str
) -> None:
    model = NativeModel.from_folder(tiny.folder(name), pack)
    assert {plan.format for plan in model.packed.matrices} == {pack}
    expected = model.reference_decoder().forward(TOKENS)
    with model.decoder(exact=True, isa=isa_name) as decoder:
        found = decoder.forward(TOKENS)
    assert_within(found, expected, 1e-4, relative=True, label=f"{name} {pack} {isa_name}")


@pytest.mark.parametrize("pack", PACKED)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_exact_packed_equals_the_reference(
    tiny: TinyCheckpoints, name: str, pack: str, isa_name: str
) -> None:
    model = NativeModel.from_folder(tiny.folder(name), pack)
    expected = model.reference_decoder(exact=True).forward(TOKENS)
    with model.decoder(exact=True, isa=isa_name) as decoder:
        found = decoder.forward(TOKENS)
    assert_within(found, expected, 1e-4, relative=True, label=f"{name} {pack} {isa_name}")


@pytest.mark.parametrize("pack", PACKED)
@pytest.mark.parametrize("name", DENSE)
def test_packed_equals_the_reference_on_its_codes(
    tiny: TinyCheckpoints, name: str, pack: str, isa_name: str
) -> None:
    model = NativeModel.from_folder(tiny.folder(name), pack)
    _compare_on_recorded_codes(model, isa_name, f"{name} {pack} {isa_name}")


@pytest.mark.parametrize(("name", "encoding"), ENCODED)
def test_ternary_equals_the_reference_on_its_codes(
    tiny: TinyCheckpoints, name: str, encoding: str, isa_name: str
) -> None:
    model = NativeModel.from_folder(tiny.folder(name, encoding))
    linears = {x.name for layer in model.spec.layers for x in layer.linears}
    assert {p.format for p in model.packed.matrices if p.name in linears} == {"ternary"}
    _compare_on_recorded_codes(model, isa_name, f"{name} {encoding} {isa_name}")


@pytest.mark.parametrize(("name", "encoding"), ENCODED)
def test_ternary_equals_transformers_up_to_the_first_tie(
    tiny: TinyCheckpoints, name: str, encoding: str, isa_name: str
) -> None:
    """Tokens before the first one with a code on a tie have the logits of transformers."""
    folder = tiny.folder(name, encoding)
    oracle = load_oracle(folder)
    expected = oracle_logits(oracle, TOKENS)
    model = NativeModel.from_folder(folder)
    with model.decoder(kv_type="f32", isa=isa_name, trace=True) as decoder:
        found = decoder.forward(TOKENS)
        tape = tape_of(model.spec, decoder.trace())
    # A position sees the ones before it, so it is clean if none of them has a differing code.
    differs = [
        (ours.codes != theirs.codes).any(axis=-1)
        for (_, ours), (_, theirs) in zip(tape, oracle_tape(oracle, TOKENS), strict=True)
    ]
    clean = int(np.argmax([*np.any(differs, axis=0), True]))
    label = f"{name} {encoding} {isa_name}"
    assert_within(found[:clean], expected[:clean], 1e-4, relative=True, label=label)
    # Even with ties the predictions stay those of the same model: a wrong scale would not.
    # Tiny random ternary models amplify a flipped code; half a root mean square is their limit.
    assert_within(found, expected, 0.5, relative=True, label=label)


def test_first_bitnet_release(tiny: TinyCheckpoints, isa_name: str) -> None:
    folder, theirs = tiny.first_bitnet()
    model = NativeModel.from_folder(folder)
    assert model.spec.layers[0].attention_sub_norm == (
        "model.layers.0.self_attn.inner_attn_ln.weight"
    )
    _compare_on_recorded_codes(model, isa_name, f"first bitnet {isa_name}")
    oracle = load_oracle(theirs)
    expected = oracle_logits(oracle, TOKENS)
    tape = oracle_tape(oracle, TOKENS)
    found = model.reference_decoder(hook=replay(tape)).forward(TOKENS)
    assert_within(found, expected, 1e-4, relative=True, label="first bitnet")


def _compare_on_recorded_codes(model: NativeModel, isa_name: str, label: str) -> None:
    """The reference goes on from the codes that C++ found, and finds all but ties again."""
    with model.decoder(kv_type="f32", isa=isa_name, trace=True) as decoder:
        found = decoder.forward(TOKENS)
        tape = tape_of(model.spec, decoder.trace())
    own: Tape = []
    use = replay(tape)

    def hook(name: str, activations: QuantizedActivations) -> QuantizedActivations:
        own.append((name, activations))
        return use(name, activations)

    expected = model.reference_decoder(hook=hook).forward(TOKENS)
    assert_within(found, expected, 1e-4, relative=True, label=label)
    assert len(own) == len(tape)
    for (name, ours), (_, theirs) in zip(own, tape, strict=True):
        assert ours.group_size == theirs.group_size
        steps = np.abs(ours.codes.astype(int) - theirs.codes)
        assert steps.max() <= 1, f"{label}: {name}: codes differ by {steps.max()} steps"
        # Only inputs within rounding of a tie may differ: about one in a thousand at 2^-24.
        assert np.count_nonzero(steps) <= 1 + steps.size // 200, f"{label}: {name}"
        assert_within(theirs.scales, ours.scales, 1e-4 * np.abs(ours.scales), label=name)


@pytest.mark.parametrize("pack", [None, *PACKED])
def test_prefill_equals_decode_bit_for_bit(
    tiny: TinyCheckpoints, pack: str | None, isa_name: str
) -> None:
    model = NativeModel.from_folder(tiny.folder("qwen3-window"), pack)
    with model.decoder(isa=isa_name) as decoder:
        at_once = decoder.forward(TOKENS)
    with model.decoder(isa=isa_name, batch_tokens=5, threads=2) as decoder:
        in_batches = decoder.forward(TOKENS)
    with model.decoder(isa=isa_name) as decoder:
        one_by_one = np.concatenate([decoder.forward([token]) for token in TOKENS])
    np.testing.assert_array_equal(at_once, in_batches)
    np.testing.assert_array_equal(at_once, one_by_one)


@pytest.mark.parametrize("encoding", BITNET_ENCODINGS)
def test_ternary_prefill_equals_decode_bit_for_bit(
    tiny: TinyCheckpoints, encoding: str, isa_name: str
) -> None:
    model = NativeModel.from_folder(tiny.folder("bitnet", encoding))
    with model.decoder(isa=isa_name) as decoder:
        at_once = decoder.forward(TOKENS)
        decoder.truncate(0)
        one_by_one = np.concatenate([decoder.forward([token]) for token in TOKENS])
    np.testing.assert_array_equal(at_once, one_by_one)


def test_f16_cache_stays_close_to_the_rounded_reference(
    tiny: TinyCheckpoints, isa_name: str
) -> None:
    """What is left are keys and values that round to neighbouring halves."""
    model = NativeModel.from_folder(tiny.folder("llama"))
    unrounded = model.reference_decoder().forward(TOKENS)
    expected = model.reference_decoder(kv_dtype=np.float16).forward(TOKENS)
    with model.decoder(kv_type="f16", isa=isa_name) as decoder:
        found = decoder.forward(TOKENS)
    assert_within(found, expected, 5e-3, relative=True, label="f16 cache")
    assert np.abs(found - expected).mean() < 0.3 * np.abs(unrounded - expected).mean()
