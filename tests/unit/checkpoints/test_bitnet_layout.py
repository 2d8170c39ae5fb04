"""BitNet layers: three encodings of one model are one model, and transformers agrees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qh_runtime.checkpoints.layouts import CodedWeights, DenseWeights, Layout, layout_for
from qh_runtime.checkpoints.layouts.bitnet import BitnetLayout, unpack_rows_apart
from qh_runtime.checkpoints.memory_tensors import MemoryTensors
from qh_runtime.errors import CheckpointError, UnsupportedTensorError
from qh_runtime.formats import get
from qh_runtime.formats.bf16 import bf16_to_f32, f32_to_bf16

DIVIDE: dict[str, Any] = {"quantization_config": {"quant_method": "bitnet"}}
MULTIPLY: dict[str, Any] = {
    "quantization_config": {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
    }
}
ONLINE: dict[str, Any] = {
    "quantization_config": {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "online",
    }
}
SHAPE = (24, 20)
NAME = "model.layers.0.mlp.up_proj"


def masters(shape: tuple[int, int] = SHAPE, seed: int = 3) -> NDArray[np.uint16]:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.03
    return f32_to_bf16(values.astype(np.float32))


def pack_slowly(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """The packing formula, one element at a time."""
    rows, cols = codes.shape
    quarter = -(-rows // 4)
    out = np.zeros((quarter, cols), np.uint8)
    for row in range(rows):
        for col in range(cols):
            out[row % quarter, col] |= (int(codes[row, col]) + 1) << (2 * (row // quarter))
    return out


def encoded(way: str, elements: NDArray[np.uint16]) -> tuple[Layout, MemoryTensors]:
    """One master tensor in encoding A (divide), B (multiply) or C (online)."""
    weights = bf16_to_f32(elements)
    codes, scale = get("ternary").quantize(weights)
    if way == "C":
        return layout_for(ONLINE), MemoryTensors({f"{NAME}.weight": ("BF16", elements)})
    value = 1 / scale if way == "A" else scale
    tensors = {
        f"{NAME}.weight": pack_slowly(codes),
        f"{NAME}.weight_scale": np.asarray([value], np.float32),
    }
    return layout_for(DIVIDE if way == "A" else MULTIPLY), MemoryTensors(tensors)


def linear(way: str, elements: NDArray[np.uint16]) -> CodedWeights:
    layout, source = encoded(way, elements)
    shape = (elements.shape[0], elements.shape[1])
    assert layout.format_of(source, NAME) == "ternary"
    found = layout.linear(source, NAME, shape)
    assert isinstance(found, CodedWeights)
    return found


@pytest.mark.parametrize("shape", [SHAPE, (4, 1), (640, 64), (6, 5), (7, 16), (1, 3), (5, 8)])
def test_three_encodings_are_one_model(shape: tuple[int, int]) -> None:
    elements = masters(shape)
    a, b, c = (linear(way, elements) for way in "ABC")
    np.testing.assert_array_equal(a.codes, c.codes)
    np.testing.assert_array_equal(b.codes, c.codes)
    assert b.scales == c.scales
    np.testing.assert_allclose(a.scales, c.scales, rtol=2**-22)
    expected, scale = get("ternary").quantize(bf16_to_f32(elements))
    np.testing.assert_array_equal(c.codes, expected)
    assert c.scales == scale
    assert set(np.unique(expected)) <= {-1, 0, 1}


def test_large_masters_are_quantized_in_chunks_as_at_once() -> None:
    elements = masters((1500, 1024))
    found = linear("C", elements)
    codes, scale = get("ternary").quantize(bf16_to_f32(elements))
    np.testing.assert_allclose(found.scales, scale, rtol=1e-6)
    assert np.count_nonzero(found.codes != codes) == 0


def test_worked_example_of_the_packing() -> None:
    # Rows 0..7 of one column; R = 2; byte 0 holds rows 0, 2, 4, 6.
    codes = np.array([-1, 1, 0, 1, 0, -1, 1, -1], np.int8).reshape(8, 1)
    packed = np.array([[0x94], [0x0A]], np.uint8)
    np.testing.assert_array_equal(pack_slowly(codes), packed)
    np.testing.assert_array_equal(unpack_rows_apart(packed, 8), codes)


@pytest.mark.parametrize("shape", [(8, 1), (64, 48), (20, 7)])
def test_equals_the_packing_of_transformers(shape: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch", reason="torch is a test extra")
    bitnet = pytest.importorskip("transformers.integrations.bitnet", reason="a test extra")
    codes = np.random.default_rng(5).integers(-1, 2, shape).astype(np.int8)
    # Their packer changes its argument in place.
    packed = bitnet.pack_weights(torch.from_numpy(codes.astype(np.float32)).clone()).numpy()
    np.testing.assert_array_equal(packed, pack_slowly(codes))
    np.testing.assert_array_equal(unpack_rows_apart(packed, shape[0]), codes)
    theirs = bitnet.unpack_weights(torch.from_numpy(packed), torch.float32).numpy()
    np.testing.assert_array_equal(unpack_rows_apart(packed, shape[0]), theirs)


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F16"])
@pytest.mark.parametrize("scale_shape", [(1,), ()])
@pytest.mark.parametrize(("settings", "expected"), [(MULTIPLY, 1.5), (DIVIDE, 1 / 1.5)])
def test_scale_types(
    dtype: str, scale_shape: tuple[int, ...], settings: dict[str, Any], expected: float
) -> None:
    value = np.full(scale_shape, 1.5, np.float32)
    tensor = {
        "F32": ("F32", value),
        "F16": ("F16", value.astype(np.float16)),
        "BF16": ("BF16", f32_to_bf16(value).reshape(scale_shape)),
    }[dtype]
    source = MemoryTensors(
        {f"{NAME}.weight": np.zeros((2, 3), np.uint8), f"{NAME}.weight_scale": tensor}
    )
    found = layout_for(settings).linear(source, NAME, (8, 3))
    assert isinstance(found, CodedWeights)
    assert float(found.scales) == np.float32(expected)


@pytest.mark.parametrize(
    ("settings", "multiply", "online"),
    [
        (DIVIDE, False, False),
        (MULTIPLY, True, False),
        (ONLINE, True, True),
        ({**DIVIDE, "architectures": ["BitNetForCausalLM"]}, False, False),
        ({**MULTIPLY, "architectures": ["LlamaForCausalLM"]}, True, False),
        ({**DIVIDE, "architectures": ["LlamaForCausalLM"]}, False, False),
        ({"architectures": ["BitnetForCausalLM"]}, True, True),
        ({"architectures": ["LlamaForCausalLM"], "weight_bits": 1}, True, True),
    ],
)
def test_which_way_a_scale_counts(settings: dict[str, Any], multiply: bool, online: bool) -> None:
    assert layout_for(settings) == BitnetLayout(multiply, online)


def test_a_plain_float_bitnet_is_dense() -> None:
    """transformers runs BitNetForCausalLM without a quantization_config as plain linear layers."""
    layout = layout_for({"model_type": "bitnet", "architectures": ["BitNetForCausalLM"]})
    assert layout.key == "dense"


def test_a_float_layer_of_a_packed_checkpoint_is_dense_whatever_the_skip_list_says() -> None:
    settings = {"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": None}}
    source = MemoryTensors({f"{NAME}.weight": ("BF16", masters())})
    layout = layout_for(settings)
    assert layout.format_of(source, NAME) == "bf16"
    assert layout.tensors_of(source, NAME) == (f"{NAME}.weight",)
    assert isinstance(layout.linear(source, NAME, SHAPE), DenseWeights)


def test_a_packed_layer_in_the_skip_list_is_still_packed() -> None:
    settings = {
        "quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["up_proj"]}
    }
    _, source = encoded("A", masters())
    assert layout_for(settings).format_of(source, NAME) == "ternary"


@pytest.mark.parametrize("field", range(4))
def test_field_value_three_is_refused(field: int) -> None:
    packed = np.full((600, 4), 0x55, np.uint8)
    packed[577, 3] |= 3 << (2 * field)
    source = MemoryTensors(
        {f"{NAME}.weight": packed, f"{NAME}.weight_scale": np.ones(1, np.float32)}
    )
    with pytest.raises(CheckpointError) as error:
        layout_for(DIVIDE).linear(source, NAME, (2400, 4))
    assert error.value.facts["tensor"] == f"{NAME}.weight"
    assert error.value.facts["found"] == 3


@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, -np.inf, np.nan, 1e38, 1e-40])
def test_a_scale_that_is_none_is_refused(value: float) -> None:
    for settings in (DIVIDE, MULTIPLY):
        tensors = {
            f"{NAME}.weight": np.zeros((2, 3), np.uint8),
            f"{NAME}.weight_scale": np.array([value], np.float32),
        }
        if settings is MULTIPLY and value == 1e-40:
            continue  # tiny, but a scale; its reciprocal is none
        with pytest.raises(CheckpointError) as error:
            layout_for(settings).linear(MemoryTensors(tensors), NAME, (8, 3))
        assert error.value.facts["tensor"] == f"{NAME}.weight_scale"


def test_shapes_are_checked_with_the_tensor_named() -> None:
    layout, source = encoded("A", masters())
    for shape in ((25, 20), (24, 21), (20, 24)):
        with pytest.raises(CheckpointError) as error:
            layout.check(source, NAME, shape)
        assert error.value.facts["tensor"] == f"{NAME}.weight"
        assert error.value.facts["expected"] == (-(-shape[0] // 4), shape[1])
        assert error.value.facts["found"] == (6, 20)
    bad = MemoryTensors(
        {f"{NAME}.weight": np.zeros((6, 20), np.uint8), f"{NAME}.weight_scale": np.ones(24, "f4")}
    )
    with pytest.raises(CheckpointError) as error:
        layout.check(bad, NAME, SHAPE)
    assert error.value.facts["found"] == (24,)


def test_a_missing_scale_and_a_missing_weight_are_named() -> None:
    layout = layout_for(DIVIDE)
    source = MemoryTensors({f"{NAME}.weight": np.zeros((6, 20), np.uint8)})
    with pytest.raises(CheckpointError) as error:
        layout.linear(source, NAME, SHAPE)
    assert error.value.facts["tensor"] == f"{NAME}.weight_scale"
    with pytest.raises(CheckpointError) as error:
        layout.linear(source, "x", SHAPE)
    assert error.value.facts["tensor"] == "x.weight"


def test_masters_that_are_not_finite_are_refused() -> None:
    elements = masters()
    elements[3, 3] = 0x7F80
    layout, source = encoded("C", masters())
    source = MemoryTensors({f"{NAME}.weight": ("BF16", elements)})
    with pytest.raises(CheckpointError) as error:
        layout.linear(source, NAME, SHAPE)
    assert error.value.facts["tensor"] == f"{NAME}.weight"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"use_rms_norm": True}, "use_rms_norm"),
        ({"linear_class": "other"}, "linear_class"),
        ({"linear_class": 3}, "linear_class"),
        ({"quantization_mode": "both"}, "quantization_mode"),
        ({"use_rms_norm": "yes"}, "use_rms_norm"),
    ],
)
def test_settings_that_are_not_supported_are_refused(change: dict[str, Any], key: str) -> None:
    with pytest.raises(CheckpointError) as error:
        layout_for({"quantization_config": {"quant_method": "bitnet", **change}})
    assert error.value.facts["key"] == key


def test_a_norm_inside_a_linear_layer_is_refused_by_its_tensor() -> None:
    source = MemoryTensors(
        {
            f"{NAME}.weight": np.zeros((6, 20), np.uint8),
            f"{NAME}.weight_scale": np.ones(1, np.float32),
            f"{NAME}.rms_norm.weight": np.ones(20, np.float32),
        }
    )
    with pytest.raises(UnsupportedTensorError) as error:
        layout_for(DIVIDE).check(source, NAME, SHAPE)
    assert error.value.facts["tensor"] == f"{NAME}.rms_norm.weight"


@pytest.mark.parametrize("method", ["gptq", "awq", "aqlm", "bitsandbytes", "fp8", "", "\x1b[2J"])
def test_other_methods_are_refused_by_name(method: str) -> None:
    with pytest.raises(UnsupportedTensorError) as error:
        layout_for({"quantization_config": {"quant_method": method, "bits": 4}})
    assert error.value.facts["quant_method"] == method
    assert error.value.facts["supported"] == ("bitnet",)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("section", [[1], "bitnet", 4, True])
def test_a_quantization_config_of_another_type_is_refused(section: Any) -> None:
    with pytest.raises(CheckpointError):
        layout_for({"quantization_config": section})


@pytest.mark.parametrize(
    ("suffix", "scheme"),
    [("qweight", "GPTQ"), ("codes", "AQLM"), ("weight_packed", "compressed-tensors")],
)
def test_a_quantized_layer_without_a_config_says_what_it_is(suffix: str, scheme: str) -> None:
    source = MemoryTensors({f"{NAME}.{suffix}": np.zeros((2, 2), np.int32)})
    with pytest.raises(UnsupportedTensorError) as error:
        layout_for({}).format_of(source, NAME)
    assert error.value.facts["tensor"] == f"{NAME}.{suffix}"
    assert scheme in str(error.value)


def test_a_dense_layer_of_another_type_is_refused() -> None:
    source = MemoryTensors({f"{NAME}.weight": np.zeros((2, 2), np.int8)})
    with pytest.raises(UnsupportedTensorError) as error:
        layout_for({}).format_of(source, NAME)
    assert error.value.facts == {"tensor": f"{NAME}.weight", "dtype": "I8"}
