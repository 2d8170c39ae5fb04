"""From a checkpoint to DecoderWeights: the right bytes, mapped, and every mismatch named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qh_kernels.decoder import Matrix
from qh_runtime import formats
from qh_runtime.architectures import DecoderSpec
from qh_runtime.checkpoints import open_checkpoint
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.checkpoints.memory_tensors import MemoryTensors
from qh_runtime.errors import CheckpointError, PlanError, UnsupportedTensorError
from qh_runtime.formats.bf16 import bf16_to_f32
from qh_runtime.packing import PackedModel, load_packed_model, plan_matrices
from tests.support.model_tensors import (
    Tensors,
    config,
    random_tensors,
    spec_of,
    stored,
    write_checkpoint,
    write_tensors,
)

DENSE = layout_for({})
BITNET = layout_for(
    {
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "online",
        }
    }
)
PACKS = ["int8", "int4_g32", "int4_g128", "nf4", "mxfp4", "nvfp4", "f32", "f16", "bf16"]


def load(spec: DecoderSpec, tensors: Tensors, **options: Any) -> PackedModel:
    model = load_packed_model(spec, MemoryTensors(tensors), DENSE, **options)
    assert model is not None
    return model


def every_matrix(model: PackedModel, spec: DecoderSpec) -> dict[str, Matrix]:
    """Module path -> matrix, as the decoder sees them."""
    out = {spec.embedding: model.weights.embedding}
    if not spec.tied_head:
        out[spec.head.name] = model.weights.head
    for layer, weights in zip(spec.layers, model.weights.layers, strict=True):
        held = (weights.q, weights.k, weights.v, weights.o, weights.gate, weights.up, weights.down)
        out |= {linear.name: m for linear, m in zip(layer.linears, held, strict=True)}
    return out


def values(tensors: Tensors, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    dtype, array = tensors[name]
    return bf16_to_f32(array) if dtype == "BF16" else array.astype(np.float32)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_dense_matrices_are_the_checkpoints_own_bytes(dtype: str, tmp_path: Path) -> None:
    spec = spec_of()
    tensors = random_tensors(spec, dtype=dtype)
    folder = write_checkpoint(tmp_path, config(), tensors)
    source = open_checkpoint(folder)
    model = load_packed_model(spec, source, DENSE)
    assert model is not None
    assert (model.origin, model.pack_path, model.reason) == ("checkpoint", None, None)
    for name, matrix in every_matrix(model, spec).items():
        assert matrix.format == dtype.lower()
        assert matrix.data.tobytes() == tensors[f"{name}.weight"][1].tobytes()
        assert np.shares_memory(matrix.data, source.read(f"{name}.weight"))
        assert not matrix.data.flags.writeable
        assert (
            matrix.data.ctypes.data
            % np.dtype(f"u{matrix.data.nbytes // (matrix.rows * matrix.cols)}").itemsize
            == 0
        )
    assert model.mapped_bytes == sum(m.data.nbytes for m in every_matrix(model, spec).values())


def test_unaligned_dense_data_is_copied(tmp_path: Path) -> None:
    spec = spec_of()
    tensors = random_tensors(spec, dtype="F32")
    write_tensors(tmp_path / "model.safetensors", tensors, misaligned_by=1)
    source = open_checkpoint(tmp_path)
    assert not source.read("lm_head.weight").flags.aligned
    model = load_packed_model(spec, source, DENSE)
    assert model is not None
    for name, matrix in every_matrix(model, spec).items():
        assert matrix.data.ctypes.data % 4 == 0
        assert matrix.data.tobytes() == tensors[f"{name}.weight"][1].tobytes()
    assert model.mapped_bytes == 0


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("kept", [True, False], ids=["file", "memory"])
def test_packed_bytes_are_those_of_the_format(pack: str, kept: bool, tmp_path: Path) -> None:
    spec = spec_of()
    tensors = random_tensors(spec)
    model = load(spec, tensors, pack=pack, cache_folder=tmp_path if kept else None)
    table = "int8" if formats.get(pack).family != "dense" else pack
    for name, matrix in every_matrix(model, spec).items():
        expected = table if name in (spec.embedding, spec.head.name) else pack
        assert matrix.format == expected
        whole = formats.get(expected).pack(values(tensors, f"{name}.weight"))
        np.testing.assert_array_equal(matrix.data, whole)
        assert not matrix.data.flags.writeable
        if formats.get(expected).family != "dense":
            assert matrix.data.ctypes.data % 64 == 0
    if pack != "bf16":
        assert model.origin == ("written" if kept else "memory")


def test_large_matrices_are_packed_in_chunks_as_at_once() -> None:
    spec = spec_of(vocab_size=1100, hidden_size=1024, head_dim=256, num_hidden_layers=1)
    tensors = random_tensors(spec)
    model = load(spec, tensors, pack="int4_g32", threads=3)
    for name, matrix in every_matrix(model, spec).items():
        whole = formats.get(matrix.format).pack(values(tensors, f"{name}.weight"))
        np.testing.assert_array_equal(matrix.data, whole)


@pytest.mark.parametrize("pack", [None, "int8", "int4_g32"])
def test_bitnet_layers_stay_ternary_whatever_is_asked_for(pack: str | None) -> None:
    spec = spec_of(model_type="bitnet", tie_word_embeddings=True, hidden_act="relu2")
    tensors = random_tensors(spec)
    model = load_packed_model(spec, MemoryTensors(tensors), BITNET, pack=pack)
    assert model is not None
    for name, matrix in every_matrix(model, spec).items():
        if name == spec.embedding:
            assert matrix.format == ("bf16" if pack is None else "int8")
            continue
        assert matrix.format == "ternary"
        whole = formats.get("ternary").pack(values(tensors, f"{name}.weight"))
        np.testing.assert_array_equal(matrix.data, whole)
    layer = model.weights.layers[0]
    assert layer.attention_sub_norm is not None
    assert layer.mlp_sub_norm is not None


def test_norms_and_biases_are_float32() -> None:
    spec = spec_of(model_type="qwen3", attention_bias=True)
    tensors = random_tensors(spec)
    model = load(spec, tensors)
    for layer, weights in zip(spec.layers, model.weights.layers, strict=True):
        pairs = {
            layer.attention_norm: weights.attention_norm,
            layer.mlp_norm: weights.mlp_norm,
            layer.q_norm: weights.q_norm,
            layer.k_norm: weights.k_norm,
            f"{layer.q.name}.bias": weights.q_bias,
            f"{layer.k.name}.bias": weights.k_bias,
            f"{layer.v.name}.bias": weights.v_bias,
            f"{layer.o.name}.bias": weights.o_bias,
        }
        for name, found in pairs.items():
            assert name is not None
            assert found is not None
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, values(tensors, name))
        assert weights.gate_bias is None
        assert weights.attention_sub_norm is None
    np.testing.assert_array_equal(model.weights.final_norm, values(tensors, spec.final_norm))


def test_a_tied_head_is_the_embedding_even_when_the_file_holds_both() -> None:
    spec = spec_of(tie_word_embeddings=True)
    tensors = random_tensors(spec)
    shape = (spec.vocab_size, spec.hidden_size)
    tensors["lm_head.weight"] = stored(np.ones(shape, np.float32), "BF16")
    model = load(spec, tensors)
    assert model.weights.head is model.weights.embedding


def test_an_untied_head_must_be_there() -> None:
    spec = spec_of()
    tensors = random_tensors(spec)
    del tensors["lm_head.weight"]
    with pytest.raises(CheckpointError) as error:
        load(spec, tensors)
    assert error.value.facts["tensor"] == "lm_head.weight"


def test_the_plan_says_what_loading_does() -> None:
    spec = spec_of()
    tensors = random_tensors(spec)
    for pack in (None, *PACKS):
        planned = plan_matrices(spec, MemoryTensors(tensors), DENSE, pack)
        model = load(spec, tensors, pack=pack)
        assert model.matrices == planned
        held = every_matrix(model, spec)
        assert [m.name for m in planned] == [
            spec.embedding,
            *[linear.name for layer in spec.layers for linear in layer.linears],
            spec.head.name,
        ]
        for matrix in planned:
            found = held[matrix.name]
            assert (found.format, found.rows, found.cols) == (
                matrix.format,
                matrix.rows,
                matrix.cols,
            )
            assert found.data.nbytes == matrix.nbytes
        assert model.mapped_bytes + model.heap_bytes >= sum(m.nbytes for m in planned)


@pytest.mark.parametrize("pack", ["ternary", "int3", "", "../int8", "\x1b[2J"])
def test_formats_that_nothing_is_packed_to_are_refused(pack: str) -> None:
    spec = spec_of()
    with pytest.raises(PlanError) as error:
        load(spec, random_tensors(spec), pack=pack)
    assert error.value.facts["format"] == pack
    assert "int8" in error.value.facts["known"]
    assert str(error.value).isprintable()


# Every kind of tensor, with another shape, another type, missing, and not finite.

_SPEC = spec_of(model_type="qwen3", attention_bias=True)
_KINDS = [
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.norm.weight",
    "model.layers.1.input_layernorm.weight",
    "model.layers.1.post_attention_layernorm.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.1.self_attn.k_proj.bias",
    "model.layers.1.self_attn.q_norm.weight",
    "model.layers.1.mlp.down_proj.weight",
]


@pytest.mark.parametrize("name", _KINDS)
def test_another_shape_is_named_with_expected_and_found(name: str) -> None:
    tensors = random_tensors(_SPEC)
    dtype, array = tensors[name]
    for wrong in (array[:-1], np.concatenate([array, array]), array.reshape(1, *array.shape)):
        with pytest.raises(CheckpointError) as error:
            load(_SPEC, {**tensors, name: (dtype, wrong)})
        assert error.value.facts["tensor"] == name
        assert error.value.facts["expected"] == array.shape
        assert error.value.facts["found"] == wrong.shape


@pytest.mark.parametrize("name", _KINDS)
def test_a_missing_tensor_is_named(name: str) -> None:
    tensors = random_tensors(_SPEC)
    del tensors[name]
    with pytest.raises(CheckpointError) as error:
        load(_SPEC, tensors)
    assert error.value.facts["tensor"] == name


@pytest.mark.parametrize("name", _KINDS)
@pytest.mark.parametrize("dtype", ["I32", "U8", "F64", "F8_E4M3"])
def test_another_type_is_named(name: str, dtype: str) -> None:
    tensors = random_tensors(_SPEC)
    shape = tensors[name][1].shape
    kind = {"I32": np.int32, "U8": np.uint8, "F64": np.float64, "F8_E4M3": np.uint8}[dtype]
    with pytest.raises(UnsupportedTensorError) as error:
        load(_SPEC, {**tensors, name: (dtype, np.ones(shape, kind))})
    assert error.value.facts["tensor"] == name
    assert error.value.facts["dtype"] == dtype


@pytest.mark.parametrize("name", [x for x in _KINDS if "norm" in x or "bias" in x])
@pytest.mark.parametrize("what", ["missing", "shape", "type"])
def test_a_norm_or_bias_is_refused_before_anything_is_packed(
    name: str, what: str, tmp_path: Path
) -> None:
    tensors = random_tensors(_SPEC)
    dtype, array = tensors.pop(name)
    if what == "shape":
        tensors[name] = (dtype, array[:-1])
    elif what == "type":
        tensors[name] = ("U8", np.ones(array.shape, np.uint8))
    with pytest.raises(CheckpointError) as error:
        load(_SPEC, tensors, pack="int8", cache_folder=tmp_path)
    assert error.value.facts["tensor"] == name
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [x for x in _KINDS if "norm" in x or "bias" in x])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_norms_and_biases_must_be_finite(name: str, value: float) -> None:
    tensors = random_tensors(_SPEC, dtype="F32")
    array = tensors[name][1].copy()
    array[-1] = value
    with pytest.raises(CheckpointError) as error:
        load(_SPEC, {**tensors, name: ("F32", array)})
    assert error.value.facts["tensor"] == name


@pytest.mark.parametrize(
    ("pack", "value"),
    [
        *((pack, value) for pack in ("int8", "int4_g32", "f16") for value in (np.nan, np.inf)),
        ("int4_g32", 1e30),
        ("f16", 1e30),
    ],
)
def test_weights_that_the_format_cannot_hold_are_named(
    pack: str, value: float, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.down_proj"
    tensors = random_tensors(_SPEC, dtype="F32")
    array = tensors[f"{name}.weight"][1].copy()
    array[40, 5] = value
    tensors[f"{name}.weight"] = ("F32", array)
    with pytest.raises(CheckpointError) as error:
        load(_SPEC, tensors, pack=pack, cache_folder=tmp_path)
    assert error.value.facts["tensor"] == name
    assert [p for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.up_proj.bias",
        "model.layers.2.input_layernorm.weight",
        "model.layers.0.self_attn.rotary_emb.weight",
        "model.layers.0.mlp.up_proj.weight_scale",
        "vision.patch.weight",
        "lm_head.weight",
    ],
)
def test_a_tensor_without_a_place_is_refused(name: str) -> None:
    spec = spec_of()
    tensors = random_tensors(spec)
    if name == "lm_head.weight":
        # Untied, but under another name than the spec's.
        name = "output.weight"
    tensors[name] = ("F32", np.ones(4, np.float32))
    with pytest.raises(CheckpointError) as error:
        load(spec, tensors)
    assert error.value.facts["tensor"] == name


def test_leftovers_of_old_exporters_are_ignored() -> None:
    spec = spec_of()
    tensors = random_tensors(spec)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", np.ones(9, np.float32))
    assert load(spec, tensors).origin == "checkpoint"
