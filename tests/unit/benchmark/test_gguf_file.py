"""What we write as GGUF is read back by the `gguf` package, block by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qh_chat.benchmark.gguf_file import QUANT_TYPES, GgufTensor, write_gguf
from qh_chat.benchmark.peer_models import (
    MIXES,
    metadata_of,
    peers_of,
    tensors_of,
    token_bytes_of,
)
from qh_chat.benchmark.shapes import SHAPES, BenchShape
from qh_runtime.formats import base as formats
from tests.support.bench_rows import TINY_BITNET, TINY_LLAMA

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("name", QUANT_TYPES)
def test_types_are_those_of_ggml(name: str) -> None:
    quant = QUANT_TYPES[name]
    number = gguf.GGMLQuantizationType[name]
    assert quant.number == number
    assert (quant.weights, quant.nbytes) == gguf.GGML_QUANT_SIZES[number]


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("shape", [TINY_BITNET, TINY_LLAMA], ids=lambda x: x.name)
def test_a_file_is_read_back(tmp_path: Path, shape: BenchShape, mix: str) -> None:
    spec = shape.spec
    tensors = tensors_of(spec, MIXES[mix])
    path = tmp_path / "model.gguf"
    write_gguf(path, metadata_of(spec, 512), tensors)
    reader = gguf.GGUFReader(path)
    arch = "bitnet" if shape is TINY_BITNET else "llama"
    found = {key: field.contents() for key, field in reader.fields.items()}
    assert found["general.architecture"] == arch
    assert found[f"{arch}.block_count"] == spec.num_hidden_layers
    assert found[f"{arch}.attention.head_count_kv"] == spec.num_key_value_heads
    assert found[f"{arch}.rope.freq_base"] == np.float32(spec.rope.theta)
    assert [x.name for x in reader.tensors] == [x.name for x in tensors]
    for tensor, expected in zip(reader.tensors, tensors, strict=True):
        assert tensor.tensor_type.name == expected.quant
        assert tensor.n_bytes == expected.nbytes
        dims = [expected.cols, expected.rows] if expected.rows else [expected.cols]
        assert tensor.shape.tolist() == dims
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.isfinite(values).all()
        if expected.rows:
            assert 1e-3 < float(np.abs(values).mean()) < 100, tensor.name
        else:
            assert (values == 1).all()


def test_ternary_weights_are_ternary(tmp_path: Path) -> None:
    for quant in ("TQ1_0", "TQ2_0"):
        path = tmp_path / f"{quant}.gguf"
        write_gguf(path, {"general.architecture": "llama"}, [GgufTensor("w", quant, 64, 512)])
        (tensor,) = gguf.GGUFReader(path).tensors
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert set(np.unique(np.sign(values))) == {-1.0, 0.0, 1.0}
        assert len(np.unique(np.abs(values))) == 2


def test_rows_that_blocks_do_not_divide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"w: Q4_K .*256.*300"):
        write_gguf(tmp_path / "x.gguf", {}, [GgufTensor("w", "Q4_K", 2, 300)])


@pytest.mark.parametrize(
    ("shape", "mix", "megabytes"),
    [
        # Sizes of files that llama.cpp's own quantizer makes, less what no token reads.
        ("bitnet-2b-4t", "TQ2_0", 808.4),
        ("bitnet-2b-4t", "TQ1_0", 710.7),
        ("llama-3.2-1b", "Q4_0", 763.1),
        ("llama-3.2-1b", "Q4_K_M", 799.9),
        ("llama-3.2-1b", "IQ2_XXS", 439.2),
        ("llama-3.2-1b", "Q2_K", 573.0),
        ("llama-3-8b", "IQ2_XXS", 2219.0),
        ("llama-3-8b", "Q2_K", 2998.9),
        ("llama-3-8b", "Q4_0", 4357.9),
        ("llama-3-8b", "Q4_K_M", 4617.4),
    ],
)
def test_mixes_have_the_published_sizes(shape: str, mix: str, megabytes: float) -> None:
    spec = SHAPES[shape].spec
    assert token_bytes_of(spec, tensors_of(spec, MIXES[mix])) == pytest.approx(
        megabytes * 1e6, abs=0.1e6
    )


def test_every_format_of_few_bits_has_a_peer() -> None:
    for name in formats.names():
        family = formats.get(name).family
        found = peers_of(name, family)
        assert set(found) <= set(MIXES)
        assert bool(found) == (family not in ("dense", "int8")), name
    assert peers_of("ternary", "ternary")[0] == "TQ2_0"
    assert peers_of("int4_g128", "lut4") == ("Q4_0", "Q4_K_M")
    assert peers_of("aqlm_2x8_g8", "codebook")[0] == "IQ2_XXS"
