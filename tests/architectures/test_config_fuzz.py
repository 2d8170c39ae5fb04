"""Mangled configs end in a DecoderSpec or in a clear error, never in another exception."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qh_runtime.architectures import decoder_shape, spec_from_config
from qh_runtime.architectures.base import DecoderSpec
from qh_runtime.errors import QhError
from tests.support.figures import Record
from tests.support.tiny_checkpoint import CASES

ROPE_KEYS = ("rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor")
OTHER_KEYS = (
    "architectures",
    "attention_bias",
    "auto_map",
    "head_dim",
    "hidden_act",
    "layer_types",
    "max_window_layers",
    "mlp_bias",
    "model_type",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "quantization_config",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "text_config",
    "tie_word_embeddings",
    "use_sliding_window",
)
NUMBERS = st.one_of(
    st.integers(),
    st.integers(-2, 9),
    st.sampled_from([2**31, 2**32, 2**63, -(2**63), 10**400, -(10**400), 2**24, 512, 513]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([5e-324, 1e-300, 1e308, -0.0, 0.0]),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.text(max_size=12),
    st.sampled_from(["silu", "llama3", "linear", "yarn", "sliding_attention", "full_attention"]),
    st.text(min_size=500, max_size=2000),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(ROPE_KEYS), st.text(max_size=8)), inner),
    ),
    max_leaves=8,
)
BASES = tuple({"model_type": case.model_type, **case.config} for case in CASES.values())


@st.composite
def mangled(draw: st.DrawFn) -> dict[str, Any]:
    config: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(1, 4))):
        known = st.sampled_from(sorted(config)) if config else st.nothing()
        key = draw(st.one_of(known, st.sampled_from(OTHER_KEYS), st.text(max_size=20)))
        if key in config and draw(st.booleans()):
            del config[key]
        elif isinstance(config.get(key), dict) and draw(st.booleans()):
            config[key][draw(st.sampled_from(ROPE_KEYS))] = draw(VALUES)
        else:
            config[key] = draw(VALUES)
    return config


def _outcome(config: Any) -> DecoderSpec | QhError:
    try:
        return spec_from_config(config)
    except QhError as error:
        return error


def _check(config: Any) -> None:
    outcome = _outcome(config)
    if isinstance(outcome, QhError):
        assert outcome.facts["expected"]
        assert outcome.message.startswith("config.json")
        assert len(str(outcome)) < 600
        assert str(outcome).isprintable()
        return
    assert len(decoder_shape(outcome).inv_freq) * 2 == outcome.head_dim
    assert outcome.parameters > 0


_SETTINGS = settings(
    max_examples=500,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@given(config=mangled())
@_SETTINGS
def test_mangled_configs(record_property: Record, config: dict[str, Any]) -> None:
    record_property("cases", 1)
    _check(config)


@pytest.mark.slow
@given(config=mangled())
@settings(parent=_SETTINGS, max_examples=10_000)
def test_many_mangled_configs(record_property: Record, config: dict[str, Any]) -> None:
    record_property("cases", 1)
    _check(config)


@given(VALUES)
@settings(max_examples=200, deadline=None)
def test_any_json_value(value: Any) -> None:
    _check(value)


def test_deep_nesting_and_huge_values() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    base = dict(BASES[0])
    for config in (
        deep,
        {**base, "rope_scaling": deep},
        {**base, "hidden_size": deep},
        {**base, "model_type": "m" * 10_000_000},
        {**base, "hidden_act": "\x1b[31m" * 1000},
        {**base, "\x1b]0;rope\x07" + "k" * 100_000: [1]},
        {**base, "layer_types": ["full_attention"] * 1_000_000},
        {**base, 7: "x"},
    ):
        _check(config)
