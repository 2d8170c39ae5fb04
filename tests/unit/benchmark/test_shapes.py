"""Random models are valid, of the published sizes, and as large as was asked for."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from qh_chat.benchmark.cases import (
    QUICK_FORMATS,
    Selection,
    formats_of,
    is_ternary,
    model_bytes,
    shapes_of,
)
from qh_chat.benchmark.measuring import Effort
from qh_chat.benchmark.shapes import (
    SHAPES,
    BenchShape,
    layer_bytes,
    matrix_bytes,
    random_model,
    random_tables,
)
from qh_kernels.decoder import Decoder, Matrix
from qh_kernels.decoder_model import LINEARS
from qh_runtime.architectures import decoder_shape
from qh_runtime.formats import base as formats
from tests.support.bench_rows import TINY_BITNET, TINY_LLAMA

ALL = Selection(
    kinds=("kernels",),
    shapes=("builtin", *SHAPES),
    formats=None,
    isas=("scalar",),
    threads=(1,),
    quick=False,
    effort=Effort(1, 0.01, 64, (256,)),
)


@pytest.mark.parametrize("rows", [1, 16, 63, 64, 65, 131, 200])
@pytest.mark.parametrize("name", formats.names())
def test_repeated_chunks_are_a_valid_matrix(name: str, rows: int) -> None:
    weight_format = formats.get(name)
    data = matrix_bytes(name, rows, 152, np.random.default_rng(1))
    assert data.ctypes.data % 64 == 0
    weight_format.check(data, (rows, 152))
    weights = weight_format.unpack(data, (rows, 152))
    assert 0.005 < float(np.abs(weights).mean()) < 0.03


@pytest.mark.parametrize(
    ("name", "linear_bytes", "head_bytes"),
    [
        ("bitnet-2b-4t", 521_011_200, 128256 * 2560 * 2),
        # 973 million weights at half a byte and 2 bytes a group of 32; the head in int8.
        ("llama-3.2-1b", 547_356_672, 128256 * 2048 + 128256 * 4),
        # 6,979 million of them.
        ("llama-3-8b", 3_925_868_544, 128256 * 4096 + 128256 * 4),
    ],
)
def test_shapes_have_the_published_sizes(name: str, linear_bytes: int, head_bytes: int) -> None:
    shape = SHAPES[name]
    size = layer_bytes(shape) * shape.spec.num_hidden_layers
    # Row scales of the ternary layers come on top of the published 2 bits a weight.
    assert abs(size - linear_bytes) < 0.01 * linear_bytes
    head = formats.get(shape.formats.head)
    assert head.nbytes((shape.spec.vocab_size, shape.spec.hidden_size)) == head_bytes


@pytest.mark.parametrize("shape", [TINY_BITNET, TINY_LLAMA], ids=lambda x: x.name)
def test_every_matrix_has_memory_of_its_own(shape: BenchShape) -> None:
    model = random_model(shape)
    layers = [getattr(layer, x) for layer in model.weights.layers for x in LINEARS]
    matrices: list[Matrix] = [*layers, model.weights.embedding]
    matrices += [model.weights.head] * (not model.spec.tied_head)
    if model.weights.head_scan is not None:
        matrices.append(model.weights.head_scan)
    places = sorted((x.data.ctypes.data, x.data.nbytes) for x in matrices)
    for (address, size), (following, _) in itertools.pairwise(places):
        assert address % 64 == 0
        assert address + size <= following
    for x in matrices:
        formats.get(x.format).check(x.data, (x.rows, x.cols))
    assert sum(size for _, size in places) == model_bytes(shape)
    with Decoder(decoder_shape(model.spec), model.weights, context_length=8, threads=1) as decoder:
        decoder.prefill([1, 2])
        assert np.isfinite(decoder.logits()).all()


def test_tables_are_shared_between_formats() -> None:
    tables = random_tables(TINY_LLAMA)
    one = random_model(TINY_LLAMA, tables)
    other = random_model(TINY_LLAMA.with_linear("nf4"), tables)
    assert one.weights.head.data is other.weights.head.data
    assert other.format == "nf4"
    assert {layer.q.format for layer in other.weights.layers} == {"nf4"}


def test_a_part_has_the_layers_that_were_asked_for() -> None:
    size = layer_bytes(TINY_LLAMA)
    part = TINY_LLAMA.part(3 * size - 1)
    assert part.spec.num_hidden_layers == 3
    assert part.label == "tiny-llama (3 of 16 layers)"
    assert part.spec.tied_head
    assert TINY_LLAMA.part(3 * size + 1).spec.num_hidden_layers == 4
    assert TINY_LLAMA.part(1 << 40) is TINY_LLAMA
    assert TINY_LLAMA.label == "tiny-llama"


def test_every_packed_format_is_measured_in_some_shape() -> None:
    found = {x: set(formats_of(ALL, SHAPES[x])) for x in SHAPES}
    packed = {x for x in formats.names() if formats.get(x).family != "dense"}
    assert set.union(*found.values()) == packed
    assert all(is_ternary(x) for x in found["bitnet-2b-4t"])
    assert not any(is_ternary(x) for x in found["llama-3-8b"])


def test_named_formats_go_to_the_shapes_of_their_kind() -> None:
    some = dataclasses.replace(ALL, formats=("nf4", "ternary"))
    assert formats_of(some, SHAPES["llama-3-8b"]) == ("nf4",)
    assert formats_of(some, SHAPES["bitnet-2b-4t"]) == ("ternary",)


def test_a_quick_run_reads_at_least_half_a_gigabyte_and_no_whole_8b() -> None:
    quick = dataclasses.replace(ALL, quick=True)
    shapes = list(shapes_of(quick))
    for shape in shapes:
        whole = SHAPES[shape.name].spec.num_hidden_layers
        size = layer_bytes(shape) * shape.spec.num_hidden_layers
        assert size >= 512e6 or shape.spec.num_hidden_layers == whole
        assert shape.name != "llama-3-8b" or shape.spec.num_hidden_layers < whole
        assert size < 700e6
    measured = {x.formats.linear for x in shapes if x.name == "llama-3-8b"}
    assert measured == set(QUICK_FORMATS) & set(formats.names())
