"""Weights seen without computing: packed rows against the checkpoint, constants, NaN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qh_kernels.decoder import Decoder, DecoderWeights, Matrix
from qh_runtime import formats
from qh_runtime.architectures import decoder_shape, spec_from_config
from qh_runtime.checkpoints import TensorSource, open_checkpoint, read_config
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.errors import IntegrityError
from qh_runtime.first_load import weights as weights_module
from qh_runtime.first_load.layer import Arithmetic
from qh_runtime.first_load.overflow import find_not_finite
from qh_runtime.first_load.weights import (
    compare_with_source,
    constant_weights,
    matrices_of,
    not_finite,
)
from qh_runtime.packing import PackedModel, load_packed_model
from tests.support.cli import write_tiny_model
from tests.support.decoder_models import DecoderModel, make_model
from tests.support.model_tensors import config, random_tensors, write_checkpoint

DENSE = config(hidden_size=72, intermediate_size=300, vocab_size=200, attention_bias=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    masters = {**DENSE, "quantization_config": {
        "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online",
    }}  # fmt: skip
    return {
        "dense": write_checkpoint(root / "dense", DENSE, random_tensors(spec_from_config(DENSE))),
        "masters": write_checkpoint(
            root / "masters", masters, random_tensors(spec_from_config(masters))
        ),
        "ternary": write_tiny_model(root / "ternary", intermediate_size=512),
    }


def compare(
    folder: Path, pack: str | None, change: Callable[[PackedModel], None] | None = None
) -> None:
    settings = read_config(folder).model
    spec, source, layout = spec_from_config(settings), open_checkpoint(folder), layout_for(settings)
    packed = load_packed_model(spec, source, layout, pack=pack, threads=1)
    assert packed is not None
    if change is not None:
        change(packed)
    compare_with_source(spec, source, layout, packed)


KINDS = [
    ("dense", None),
    ("dense", "f16"),
    ("dense", "int8"),
    ("dense", "int4_g32"),
    ("dense", "int4_g128"),
    ("dense", "nf4"),
    ("dense", "mxfp4"),
    ("dense", "nvfp4"),
    ("masters", None),
    ("ternary", None),
    ("ternary", "int8"),
]


@pytest.mark.parametrize(("name", "pack"), KINDS)
def test_what_was_packed_is_what_the_checkpoint_has(
    name: str, pack: str | None, folders: dict[str, Path]
) -> None:
    compare(folders[name], pack)


def _changed(index: int, byte: int, bit: int) -> Callable[[PackedModel], None]:
    def change(packed: PackedModel) -> None:
        plan = packed.matrices[index]
        held = dict(matrices_of_model(packed))[plan.name].data
        held.flags.writeable = True
        held[byte] ^= bit

    return change


def matrices_of_model(packed: PackedModel) -> list[tuple[str, Matrix]]:
    layers = [vars(layer) for layer in packed.weights.layers]
    held = [packed.weights.embedding]
    held += [x[n] for x in layers for n in ("q", "k", "v", "o", "gate", "up", "down")]
    return list(zip((p.name for p in packed.matrices), held, strict=False))


@pytest.mark.parametrize(
    ("name", "pack"), [x for x in KINDS if x not in (("dense", None), ("ternary", "int8"))]
)
@pytest.mark.parametrize("byte", [0, -1])
def test_a_flipped_bit_in_a_sampled_row_is_found(
    name: str, pack: str | None, byte: int, folders: dict[str, Path]
) -> None:
    """The first bytes of q in the first layer, and the last ones of down in the last."""
    index = 1 if byte == 0 else 14
    with pytest.raises(IntegrityError) as caught:
        compare(folders[name], pack, _changed(index, byte, 1))
    expected = "self_attn.q_proj" if byte == 0 else "mlp.down_proj"
    assert str(caught.value.facts["tensor"]).endswith(expected)
    assert caught.value.facts["path"] is None


def test_shuffled_scales_are_found(folders: dict[str, Path]) -> None:
    def shuffle(packed: PackedModel) -> None:
        matrix = packed.weights.layers[1].gate
        weight_format, shape = formats.get(matrix.format), (matrix.rows, matrix.cols)
        codes, scales = weight_format.unpack_codes(matrix.data, shape)
        matrix.data.flags.writeable = True
        matrix.data[:] = weight_format.pack_codes(codes, scales[::-1].copy(), shape)

    with pytest.raises(IntegrityError):
        compare(folders["dense"], "int8", shuffle)


class _Removed:
    """A checkpoint whose large tensors are gone; what the loader knew of them is not."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __contains__(self, name: object) -> bool:
        return name in self._source

    def holds(self, name: str) -> bool:
        return "norm" in name

    def read(self, name: str) -> Any:
        assert self.holds(name), f"{name} is not there any more"
        return self._source.read(name)


@pytest.mark.parametrize(("name", "pack"), [("dense", "int8"), ("ternary", None)])
def test_of_a_removed_source_nothing_is_asked(
    name: str, pack: str | None, folders: dict[str, Path]
) -> None:
    settings = read_config(folders[name]).model
    spec, layout = spec_from_config(settings), layout_for(settings)
    source = open_checkpoint(folders[name])
    packed = load_packed_model(spec, source, layout, pack=pack, threads=1)
    assert packed is not None
    removed: Any = _Removed(source)
    compare_with_source(spec, removed, layout, packed)


@pytest.mark.parametrize(("name", "pack"), [("dense", "int8"), ("ternary", None)])
def test_large_models_are_sampled_within_bounds(
    name: str, pack: str | None, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tenth of what would be read of this one, most matrices are left out and some not."""
    asked: list[str] = []
    compared = weights_module.packed_range

    def note(tensor: str, *rest: Any) -> Any:
        asked.append(tensor)
        return compared(tensor, *rest)

    monkeypatch.setattr(weights_module, "packed_range", note)
    compare(folders[name], pack)
    everything = set(asked)
    asked.clear()
    monkeypatch.setattr(weights_module, "_DENSE_WEIGHTS", 5000)
    monkeypatch.setattr(weights_module, "_CODED_WEIGHTS", 10_000)
    compare(folders[name], pack)
    assert 0 < len(set(asked)) < len(everything) / 2


def with_matrix(model: DecoderModel, layer: int, name: str, values: np.ndarray) -> DecoderWeights:
    """The model with the values of a dense matrix."""
    layers = list(model.weights.layers)
    old: Matrix = getattr(layers[layer], name)
    data = formats.get(old.format).encode(values).reshape(-1).view(np.uint8)  # type: ignore[attr-defined]
    layers[layer] = replace(layers[layer], **{name: Matrix(old.format, data, old.rows, old.cols)})
    return replace(model.weights, layers=tuple(layers))


def values_of(matrix: Matrix) -> np.ndarray:
    return formats.get(matrix.format).unpack(matrix.data, (matrix.rows, matrix.cols)).copy()


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_matrix_of_one_value_is_named(value: float) -> None:
    model = make_model("llama-f16")
    assert constant_weights(model.spec, model.weights) == ()
    down = model.weights.layers[2].down
    weights = with_matrix(model, 2, "down", np.full((down.rows, down.cols), value, np.float32))
    assert constant_weights(model.spec, weights) == ("layers.2.down",)
    # One row that says something is enough.
    some = np.zeros((down.rows, down.cols), np.float32)
    some[-1, -1] = 1
    assert constant_weights(model.spec, with_matrix(model, 2, "down", some)) == ()


@pytest.mark.parametrize("name", ["llama-int8", "llama-int4", "bitnet"])
def test_packed_zeros_are_named(name: str) -> None:
    model = make_model(name)
    assert constant_weights(model.spec, model.weights) == ()
    old = model.weights.layers[0].gate
    zeros = formats.get(old.format).pack(np.zeros((old.rows, old.cols), np.float32))
    layers = list(model.weights.layers)
    layers[0] = replace(layers[0], gate=Matrix(old.format, zeros, old.rows, old.cols))
    weights = replace(model.weights, layers=tuple(layers))
    assert constant_weights(model.spec, weights) == ("layers.0.gate",)


def test_norms_of_zeros_are_named_and_norms_of_ones_are_not() -> None:
    model = make_model("llama")
    ones, zeros = (np.full(model.spec.hidden_size, x, np.float32) for x in (1, 0))
    layers = [replace(x, mlp_norm=ones) for x in model.weights.layers]
    layers[1] = replace(layers[1], attention_norm=zeros)
    weights = replace(model.weights, layers=tuple(layers), final_norm=zeros)
    assert constant_weights(model.spec, weights) == ("final_norm", "layers.1.attention_norm")


def test_a_model_of_single_numbers_is_not_constant() -> None:
    model = make_model("one")
    assert constant_weights(model.spec, model.weights) == ()


TOKENS = (1, 5, 60)
HOW = Arithmetic("scalar", False, "f16", 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("case", ["llama", "llama-f16", "llama-tied"])
@pytest.mark.parametrize(("layer", "name"), [(0, "q"), (1, "v"), (2, "down")])
def test_the_matrix_that_is_not_finite_is_found(
    value: float, case: str, layer: int, name: str
) -> None:
    model = make_model(case)
    values = values_of(getattr(model.weights.layers[layer], name))
    values[-1, 0] = value
    weights = with_matrix(model, layer, name, values)
    assert not_finite(model.spec, weights, layer) == f"layers.{layer}.{name}"
    assert not_finite(model.spec, weights, (layer + 1) % 3) is None
    assert not_finite(model.spec, weights) is None
    assert find_not_finite(model.spec, weights, TOKENS, HOW).tensor == f"layers.{layer}.{name}"


@pytest.mark.parametrize("name", ["embedding", "head"])
def test_an_embedding_or_a_head_that_is_not_finite_is_found(name: str) -> None:
    model = make_model("llama-f16")
    matrix: Matrix = getattr(model.weights, name)
    values = values_of(matrix)
    values[TOKENS[0], 3] = np.nan
    data = values.astype(np.float16).reshape(-1).view(np.uint8)
    held = Matrix(matrix.format, data, matrix.rows, matrix.cols)
    weights = replace(model.weights, **{name: held})
    assert find_not_finite(model.spec, weights, TOKENS, HOW).tensor == name


def test_finite_weights_that_overflow_are_placed_by_their_block() -> None:
    model = make_model("llama")
    up = model.weights.layers[1].up
    weights = with_matrix(model, 1, "up", np.full((up.rows, up.cols), 3e38, np.float32))
    found = find_not_finite(model.spec, weights, TOKENS, HOW)
    assert (found.tensor, found.where) == (None, "layer 1")


def test_a_scale_that_is_not_finite_is_found() -> None:
    model = make_model("llama-int8")
    old = model.weights.layers[0].v
    data = old.data.copy()
    data[-64:].view(np.float32)[0] = np.nan
    layers: list[Any] = list(model.weights.layers)
    layers[0] = replace(layers[0], v=Matrix(old.format, data, old.rows, old.cols))
    weights = replace(model.weights, layers=tuple(layers))
    assert find_not_finite(model.spec, weights, TOKENS, HOW).tensor == "layers.0.v"


def test_every_matrix_is_listed_once_in_order() -> None:
    model = make_model("llama-tied")
    names = [name for name, _ in matrices_of(model.spec, model.weights)]
    assert names == ["embedding", *(x.name for y in model.spec.layers for x in y.linears)]
    untied = make_model("llama")
    assert [name for name, _ in matrices_of(untied.spec, untied.weights)][-1] == "head"
    with Decoder(decoder_shape(model.spec), model.weights, context_length=4, threads=1) as decoder:
        held = sum(x.data.nbytes for _, x in matrices_of(model.spec, model.weights))
        assert held <= decoder.weights_bytes
