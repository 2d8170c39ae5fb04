"""Checkpoints that transformers wrote: we find the weights that an independent reading finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qh_runtime import formats
from qh_runtime.architectures import spec_from_config
from qh_runtime.checkpoints import open_checkpoint, read_config
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.packing import load_packed_model

tiny = pytest.importorskip("tests.support.tiny_checkpoint", reason="needs the dev extra")

_TERNARY = ("bitnet", "bitnet-untied", "llama-ternary")
_VARIANTS = [(name, "") for name in tiny.CASES if name not in _TERNARY] + [
    (name, encoding) for name in _TERNARY for encoding in tiny.BITNET_ENCODINGS
]


@pytest.mark.parametrize(("name", "encoding"), _VARIANTS)
def test_every_weight_is_the_one_in_the_file(name: str, encoding: str, tmp_path: Path) -> None:
    folder = tiny.TinyCheckpoints(tmp_path).folder(name, encoding)
    config = read_config(folder).model
    spec = spec_from_config(config)
    model = load_packed_model(
        spec, open_checkpoint(folder), layout_for(config), cache_folder=tmp_path / "cache"
    )
    assert model is not None
    expected = tiny.reference_weights(folder)
    held = {spec.embedding: model.weights.embedding, spec.head.name: model.weights.head}
    for layer, weights in zip(spec.layers, model.weights.layers, strict=True):
        seven = (weights.q, weights.k, weights.v, weights.o, weights.gate, weights.up, weights.down)
        held |= {linear.name: m for linear, m in zip(layer.linears, seven, strict=True)}
        np.testing.assert_array_equal(
            weights.attention_norm, expected.vectors[layer.attention_norm]
        )
        for linear, bias in ((layer.q, weights.q_bias), (layer.down, weights.down_bias)):
            assert (bias is not None) == linear.bias
            if bias is not None:
                np.testing.assert_array_equal(bias, expected.vectors[f"{linear.name}.bias"])
    for path, matrix in held.items():
        found = formats.get(matrix.format).unpack(matrix.data, (matrix.rows, matrix.cols))
        theirs = expected.matrix(path, (matrix.rows, matrix.cols)).values
        # The divided scale is rounded once on each side.
        np.testing.assert_allclose(found, theirs, rtol=2**-22 if encoding == "A" else 0, atol=0)
        is_linear = path not in (spec.embedding, spec.head.name)
        assert (matrix.format == "ternary") == bool(encoding and is_linear)
