"""Random shapes and options: the C++ decoder equals the reference on every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qh_kernels import isa
from qh_runtime.architectures import DecoderSpec, spec_from_config
from qh_runtime.reference.decoder import replay
from tests.support.native_model import NativeModel, tape_of
from tests.support.tiny_checkpoint import BITNET_ENCODINGS
from tests.support.tolerance import assert_within

PACKS = (None, "f16", "bf16", "int8", "int4_g32", "int4_g128", "nf4", "mxfp4", "nvfp4")

CODED = ("ternary", "int8", "int4_g32", "int4_g128", "nf4", "mxfp4", "nvfp4")
MASTERS = BITNET_ENCODINGS["C"]


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """A config of any size up to a few tiles, with every option of its model type."""
    model_type = draw(st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]))
    kv_heads = draw(st.integers(1, 4))
    config: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": draw(st.integers(2, 70)),
        "hidden_size": draw(st.integers(1, 140)),
        "intermediate_size": draw(st.integers(1, 140)),
        "num_hidden_layers": draw(st.integers(1, 2)),
        "num_attention_heads": kv_heads * draw(st.integers(1, 4)),
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * draw(st.integers(1, 40)),
        "hidden_act": draw(st.sampled_from(["silu", "relu2"])),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        "rope_theta": draw(st.sampled_from([10.0, 1e4, 1e6])),
        "tie_word_embeddings": draw(st.booleans()),
    }
    window = draw(st.sampled_from([None, 1, 3, 50]))
    if model_type == "mistral":
        config["sliding_window"] = window
    elif model_type in ("qwen2", "qwen3") and window is not None:
        config |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
    if model_type in ("llama", "qwen3"):
        config["attention_bias"] = draw(st.booleans())
    if model_type == "llama":
        config["mlp_bias"] = draw(st.booleans())
    return config


def _tensors(spec: DecoderSpec, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    tensors = {f"{spec.embedding}.weight": normal(spec.vocab_size, spec.hidden_size)}
    linears = [linear for layer in spec.layers for linear in layer.linears]
    for linear in [*linears, *([] if spec.tied_head else [spec.head])]:
        scale = linear.in_features**-0.5
        shape = (linear.out_features, linear.in_features)
        tensors[f"{linear.name}.weight"] = normal(*shape, scale=scale)
        if linear.bias:
            tensors[f"{linear.name}.bias"] = normal(linear.out_features, scale=0.3)
    norms = [(spec.final_norm, spec.hidden_size)]
    for layer in spec.layers:
        norms += [(layer.attention_norm, spec.hidden_size), (layer.mlp_norm, spec.hidden_size)]
        norms += [(name, spec.head_dim) for name in (layer.q_norm, layer.k_norm) if name]
    return tensors | {name: 1 + normal(length, scale=0.2) for name, length in norms}


def _bound(exact: np.ndarray, rounded: np.ndarray) -> np.ndarray:
    """A share of each row, plus what float32 costs the reference itself.

    A norm over one or two inputs near zero multiplies rounding by up to 1 / sqrt(eps); the
    reference in float32 suffers the same, within a factor that the order of sums decides.
    """
    size = np.sqrt(np.mean(exact**2, axis=-1, keepdims=True))
    return np.asarray(2e-3 * np.maximum(size, 0.05) + 30 * np.abs(rounded - exact).max())


def _check(config: dict[str, Any], pack: str | None, seed: int, n_tokens: int) -> None:
    spec = spec_from_config(config)
    model = NativeModel.from_tensors(config, _tensors(spec, seed), pack)
    tokens = np.random.default_rng(seed).integers(0, spec.vocab_size, size=n_tokens).tolist()
    exact = model.reference_decoder(exact=True, dtype=np.float64).forward(tokens)
    rounded = model.reference_decoder(exact=True).forward(tokens)
    for name in isa.available():
        with model.decoder(exact=True, isa=name, batch_tokens=4) as decoder:
            found = decoder.forward(tokens)
        bound = _bound(exact, rounded)
        assert_within(found, exact, bound, label=f"{name} {pack}")


def _check_on_codes(config: dict[str, Any], pack: str | None, seed: int, n_tokens: int) -> None:
    """With int8 activations: the reference goes on from the codes that C++ found."""
    spec = spec_from_config(config)
    model = NativeModel.from_tensors(config, _tensors(spec, seed), pack)
    tokens = np.random.default_rng(seed).integers(0, spec.vocab_size, size=n_tokens).tolist()
    for name in isa.available():
        with model.decoder(kv_type="f32", isa=name, batch_tokens=4, trace=True) as decoder:
            # The trace is of the last pass: one pass, several batches.
            found = decoder.forward(tokens)
            tape = tape_of(spec, decoder.trace())
        expected = model.reference_decoder(hook=replay(tape), dtype=np.float64).forward(tokens)
        rounded = model.reference_decoder(hook=replay(tape)).forward(tokens)
        bound = _bound(expected, rounded)
        assert_within(found, expected, bound, label=f"{name} {pack} codes")


@given(configs(), st.sampled_from(CODED), st.integers(0, 2**16), st.integers(1, 9))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_shapes_with_codes(
    config: dict[str, Any], pack: str, seed: int, n_tokens: int
) -> None:
    if pack == "ternary":
        _check_on_codes({**config, "quantization_config": MASTERS}, None, seed, n_tokens)
    else:
        _check_on_codes(config, pack, seed, n_tokens)


@given(configs(), st.sampled_from(PACKS), st.integers(0, 2**16), st.integers(1, 9))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_shapes(config: dict[str, Any], pack: str | None, seed: int, n_tokens: int) -> None:
    _check(config, pack, seed, n_tokens)


@pytest.mark.slow
@given(configs(), st.sampled_from(PACKS), st.integers(0, 2**16), st.integers(1, 30))
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_many_random_shapes(
    config: dict[str, Any], pack: str | None, seed: int, n_tokens: int
) -> None:
    _check(config, pack, seed, n_tokens)
    if pack in CODED:
        _check_on_codes(config, pack, seed, n_tokens)
    else:
        _check_on_codes({**config, "quantization_config": MASTERS}, None, seed, n_tokens)
