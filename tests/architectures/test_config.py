"""Configs: defaults and both spellings as transformers reads them, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import qh_runtime.architectures as architectures
from qh_runtime.architectures import decoder_shape, model_types, spec_from_config
from qh_runtime.architectures.base import DecoderSpec, RopeSpec
from qh_runtime.architectures.rope import inverse_frequencies
from qh_runtime.errors import UnsupportedArchitectureError
from tests.support.tiny_checkpoint import CASES

TYPES = ("bitnet", "llama", "mistral", "qwen2", "qwen3")
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


def _config(model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    return {"model_type": model_type, **TINY, **changes}


def _as_transformers_sees_it(config: dict[str, Any]) -> Any:
    return transformers.CONFIG_MAPPING[config["model_type"]](
        **{key: value for key, value in config.items() if key != "model_type"}
    )


def _assert_equal(spec: DecoderSpec, upstream: Any) -> None:
    heads = upstream.num_attention_heads
    assert spec.hidden_size == upstream.hidden_size
    assert spec.intermediate_size == upstream.intermediate_size
    assert spec.num_hidden_layers == upstream.num_hidden_layers
    assert spec.num_attention_heads == heads
    assert spec.num_key_value_heads == upstream.num_key_value_heads
    assert spec.head_dim == (getattr(upstream, "head_dim", None) or upstream.hidden_size // heads)
    assert spec.vocab_size == upstream.vocab_size
    assert spec.max_position_embeddings == upstream.max_position_embeddings
    assert spec.rms_norm_eps == upstream.rms_norm_eps
    assert spec.activation == upstream.hidden_act
    assert spec.tied_head == upstream.tie_word_embeddings
    assert spec.rope.theta == upstream.rope_parameters["rope_theta"]
    assert (spec.rope.scaling == "none") == (upstream.rope_parameters["rope_type"] == "default")
    types = getattr(upstream, "layer_types", None)
    window = getattr(upstream, "sliding_window", None) or 0
    for index, layer in enumerate(spec.layers):
        slides = types[index] == "sliding_attention" if types else bool(window)
        assert layer.sliding_window == (window if slides else 0)


def test_folder_is_the_registry() -> None:
    folder = Path(architectures.__file__).parent
    with_spec = {x.stem for x in folder.glob("*.py") if "\ndef spec_from_config" in x.read_text()}
    assert model_types() == TYPES
    assert with_spec - {"__init__"} == set(TYPES)


def test_every_architecture_has_a_tiny_checkpoint() -> None:
    assert {case.model_type for case in CASES.values()} == set(model_types())


@pytest.mark.parametrize("model_type", TYPES)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    _assert_equal(
        spec_from_config({"model_type": model_type}),
        _as_transformers_sees_it({"model_type": model_type}),
    )


@pytest.mark.parametrize("name", CASES)
def test_tensor_names_and_shapes_are_those_of_transformers(name: str) -> None:
    case = CASES[name]
    upstream = transformers.CONFIG_MAPPING[case.model_type](**case.config)
    spec = spec_from_config(json.loads(upstream.to_json_string(use_diff=False)))
    _assert_equal(spec, upstream)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(upstream)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if upstream.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert _shapes(spec) == expected


def _shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    hidden, q_size = spec.hidden_size, spec.num_attention_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        f"{spec.embedding}.weight": (spec.vocab_size, hidden),
        f"{spec.head.name}.weight": (spec.head.out_features, spec.head.in_features),
        spec.final_norm: (hidden,),
    }
    for layer in spec.layers:
        for linear in layer.linears:
            shapes[f"{linear.name}.weight"] = (linear.out_features, linear.in_features)
            if linear.bias:
                shapes[f"{linear.name}.bias"] = (linear.out_features,)
        for name, length in (
            (layer.attention_norm, hidden),
            (layer.mlp_norm, hidden),
            (layer.q_norm, spec.head_dim),
            (layer.k_norm, spec.head_dim),
            (layer.attention_sub_norm, q_size),
            (layer.mlp_sub_norm, spec.intermediate_size),
        ):
            if name is not None:
                shapes[name] = (length,)
    return shapes


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": None},
        {"head_dim": 32},
        {"head_dim": None},
        {"rope_theta": 500000.0},
        {"rope_theta": 500000, "rope_scaling": None},
        {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
        {"rope_theta": 7.0, "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
        {"rope_scaling": {"type": "default"}, "rope_theta": 77.0},
        {"torch_dtype": "bfloat16", "pretraining_tp": 1, "use_cache": True, "attention_dropout": 0},
        {"tie_word_embeddings": True},
        {"attn_implementation": "eager", "unsloth_version": "2026.1"},
        {"auto_map": {"AutoModelForCausalLM": "modeling_custom.Custom"}},
    ],
)
def test_spellings_are_read_as_transformers_reads_them(changes: dict[str, Any]) -> None:
    config = _config("llama", **changes)
    _assert_equal(spec_from_config(config), _as_transformers_sees_it(config))


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize("first", [0, 1, 2, 3, 28])
@pytest.mark.parametrize("use", [True, False])
def test_windows_begin_where_transformers_begins_them(
    model_type: str, first: int, use: bool
) -> None:
    config = _config(model_type, num_hidden_layers=3, sliding_window=7)
    config |= {"use_sliding_window": use, "max_window_layers": first}
    spec = spec_from_config(config)
    _assert_equal(spec, _as_transformers_sees_it(config))
    slides = [layer.sliding_window == 7 for layer in spec.layers]
    assert slides == [use and index >= first for index in range(3)]


@pytest.mark.parametrize(
    ("scaling", "extra"),
    [
        ({"type": "linear", "factor": 3.5}, {}),
        (
            {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            {"max_position_embeddings": 131072, "rope_theta": 500000.0},
        ),
        (
            {
                "rope_type": "llama3",
                "factor": 8,
                "low_freq_factor": 1,
                "high_freq_factor": 4,
                "original_max_position_embeddings": 64,
            },
            {"max_position_embeddings": 512, "original_max_position_embeddings": 128},
        ),
        ({}, {"rope_theta": 1000042.0}),
        ({}, {"rope_theta": 10000, "head_dim": 256}),
    ],
)
def test_frequencies_equal_those_of_torch(scaling: dict[str, Any], extra: dict[str, Any]) -> None:
    """To one unit in the last place of the power and of what follows it."""
    config = _config(head_dim=128, rope_scaling=scaling, rope_theta=10000.0)
    config.update(extra)
    spec = spec_from_config(json.loads(json.dumps(config)))
    upstream = _as_transformers_sees_it(config)
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(upstream)
    expected = rotary.inv_freq.numpy()
    found = decoder_shape(spec).inv_freq
    assert found.dtype == np.float32
    assert found.shape == (spec.head_dim // 2,)
    np.testing.assert_array_max_ulp(found, expected, maxulp=4)
    assert found[0] == expected[0]
    assert np.mean(found == expected) > 0.5


def test_long_wavelengths_are_divided_and_short_ones_kept() -> None:
    rope = RopeSpec(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)
    plain = inverse_frequencies(RopeSpec(500000.0), 128)
    scaled = inverse_frequencies(rope, 128)
    wavelength = 2 * math.pi / plain
    np.testing.assert_array_equal(scaled[wavelength < 2048], plain[wavelength < 2048])
    long = wavelength > 8192
    np.testing.assert_array_equal(scaled[long], plain[long] / np.float32(8))
    assert (scaled[1:] < scaled[:-1]).all()


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("model_type", "changes", "key"),
    [
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers"),
        ("llama", {"num_hidden_layers": 513}, "num_hidden_layers"),
        ("llama", {"num_hidden_layers": 2.0}, "num_hidden_layers"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers"),
        ("llama", {"hidden_size": 65537}, "hidden_size"),
        ("llama", {"hidden_size": None}, "hidden_size"),
        ("llama", {"hidden_size": "64"}, "hidden_size"),
        ("llama", {"vocab_size": (1 << 21) + 1}, "vocab_size"),
        ("llama", {"vocab_size": 10**400}, "vocab_size"),
        ("llama", {"max_position_embeddings": -1}, "max_position_embeddings"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("llama", {"num_attention_heads": 3, "num_key_value_heads": 1}, "num_attention_heads"),
        ("llama", {"num_attention_heads": 4096, "head_dim": 4096}, "num_attention_heads"),
        ("llama", {"head_dim": 15}, "head_dim"),
        ("llama", {"num_attention_heads": 64, "num_key_value_heads": 1}, "head_dim"),
        ("llama", {"rms_norm_eps": math.nan}, "rms_norm_eps"),
        ("llama", {"rms_norm_eps": -1e-5}, "rms_norm_eps"),
        ("llama", {"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ("llama", {"rope_theta": math.inf}, "rope_theta"),
        ("llama", {"rope_theta": 0}, "rope_theta"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"hidden_act": ["silu"]}, "hidden_act"),
        ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ("llama", {"attention_bias": "false"}, "attention_bias"),
        ("llama", {"sliding_window": 512}, "sliding_window"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"rope_scaling": YARN}, "type"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type"),
        ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "rope_type"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "factor"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2, "mscale": 0.7}}, "mscale"),
        ("llama", {"rope_scaling": {"type": "default", "mrope_section": [2, 3]}}, "mrope_section"),
        ("llama", {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor"),
        ("llama", {"rope_scaling": [1, 2]}, "rope_scaling"),
        (
            "llama",
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "factor": 4.0},
            },
            "rope_scaling",
        ),
        ("llama", {"logits_scaling": 8.0}, "logits_scaling"),
        ("llama", {"residual_multiplier": 0.22}, "residual_multiplier"),
        ("llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("llama", {"num_local_experts": 8}, "num_local_experts"),
        ("llama", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("llama", {"qk_norm": True}, "qk_norm"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ("bitnet", {"architectures": ["BitnetForCausalLM"]}, "architectures"),
        ("llama", {"architectures": ["BitnetForCausalLM"], "weight_bits": 4}, "weight_bits"),
        ("llama", {"architectures": ["BitnetForCausalLM"], "head_dim": 32}, "head_dim"),
        ("llama", {"architectures": "LlamaForCausalLM"}, "architectures"),
        ("qwen3", {"architectures": ["Qwen3Model"]}, "architectures"),
        ("qwen3", {"is_causal": False, "v_head_dim": 16}, "is_causal"),
        ("llama", {"activation": "geglu"}, "activation"),
        (
            "qwen2",
            {"dual_chunk_attention_config": {"chunk_size": 1}},
            "dual_chunk_attention_config",
        ),
        ("llama", {"quantization_config": {"use_rms_norm": True}}, "use_rms_norm"),
        ("mistral", {"sliding_window": 0}, "sliding_window"),
        ("mistral", {"attention_bias": True}, "attention_bias"),
        ("mistral", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ("qwen2", {"layer_types": ["linear_attention"] * 2}, "layer_types"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": -4}, "sliding_window"),
        ("qwen2", {"mlp_bias": True}, "mlp_bias"),
        ("qwen3", {"mlp_bias": True}, "mlp_bias"),
        ("qwen3", {"head_dim": None}, "head_dim"),
        ("bitnet", {"head_dim": 32}, "head_dim"),
        ("bitnet", {"mlp_bias": True}, "mlp_bias"),
        ("gpt2", {}, "model_type"),
        ("base", {}, "model_type"),
        ("../llama", {}, "model_type"),
        ("qwen2_vl", {"text_config": {"model_type": "qwen2"}}, "model_type"),
    ],
)
def test_refused_with_key_and_value(model_type: str, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UnsupportedArchitectureError) as caught:
        spec_from_config(_config(model_type, **changes))
    assert caught.value.facts["key"] == key
    assert caught.value.facts["expected"]
    assert caught.value.hint
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("config", [None, [], 3, "llama", {}, {"model_type": None}])
def test_things_that_are_no_config_are_refused(config: Any) -> None:
    with pytest.raises(UnsupportedArchitectureError):
        spec_from_config(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_local_experts": 0},
        {"embedding_multiplier": 1.0},
        {"qk_norm": False},
        {"no_rope_layers": []},
        {"sliding_window": 2048, "max_position_embeddings": 2048},
        {"layer_types": ["full_attention"] * 2},
        {"license": "apache-2.0", "trained_on": {"tokens": 1e12}},
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": ["LLaMAForCausalLM"]},
        {"architectures": []},
        {
            "activation": "swiglu",
            "use_flash_attention_2": True,
            "attention_probs_dropout_prob": 0.1,
        },
    ],
)
def test_neutral_values_of_unknown_keys_pass(changes: dict[str, Any]) -> None:
    assert spec_from_config(_config(**changes)) == spec_from_config(_config())


def test_activations_under_their_names() -> None:
    for name, expected in (("silu", "silu"), ("swish", "silu"), ("relu2", "relu2")):
        assert spec_from_config(_config(hidden_act=name)).activation == expected


def test_parameters_counts_a_tied_head_once() -> None:
    untied, tied = (spec_from_config(_config(tie_word_embeddings=tie)) for tie in (False, True))
    assert untied.parameters - tied.parameters == 100 * 64
    per_layer = 64 * 64 * 2 + 64 * 32 * 2 + 64 * 96 * 3
    assert tied.parameters == 100 * 64 + 2 * per_layer
