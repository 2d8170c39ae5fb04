"""The boundary refuses what the kernels cannot take, with facts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qh_kernels import KernelError, cpu
from qh_kernels import isa as instruction_sets
from qh_kernels.bench import bench_attention, bench_linear, measure_read_bandwidth
from qh_kernels.build_info import build_info
from qh_kernels.cpu import QuantizedTokens
from qh_kernels.decoder import Matrix
from qh_kernels.kv_cache import KvHead, kv_block_bytes
from qh_runtime import formats


def ternary(rows: int = 16, cols: int = 64) -> Matrix:
    data = np.zeros(cpu.format_nbytes("ternary", rows, cols), np.uint8)
    return Matrix("ternary", data, rows, cols)


def tokens(cols: int = 64, n: int = 2) -> QuantizedTokens:
    return cpu.quantize_token(np.ones((n, cols), np.float32))


def refused(call: Callable[[], object]) -> KernelError:
    with pytest.raises(KernelError) as caught:
        call()
    assert caught.value.hint
    return caught.value


def test_formats_and_sizes_agree_with_the_runtime() -> None:
    assert set(cpu.format_names()) == set(formats.names())
    for name in cpu.format_names():
        for shape in ((1, 1), (16, 32), (17, 33), (100, 129), (3, 1000)):
            assert cpu.format_nbytes(name, *shape) == formats.get(name).nbytes(shape)


@pytest.mark.parametrize("shape", [(0, 1), (1, 0), (-1, 5), (5, -(2**62)), (2**40, 1), (1, 2**40)])
def test_absurd_shapes(shape: tuple[int, int]) -> None:
    error = refused(lambda: cpu.format_nbytes("int8", *shape))
    assert error.facts["found"] == f"({shape[0]}, {shape[1]})"


def test_unknown_format_names_the_known_ones() -> None:
    error = refused(lambda: cpu.format_nbytes("int5", 1, 1))
    assert error.facts["found"] == "int5"
    assert "int4_g32" in error.facts["expected"]


def test_wrong_weight_size() -> None:
    matrix = ternary()
    for data in (matrix.data[:-1], np.append(matrix.data, np.uint8(0)), matrix.data[:0]):
        bad = Matrix("ternary", data, 16, 64)
        error = refused(lambda bad=bad: cpu.linear_quantized(bad, tokens()))
        assert error.facts["object"] == "weights"
        assert str(len(bad.data)) in error.facts["found"]


def test_wrong_arrays() -> None:
    x = tokens()
    strided = np.zeros((2, 256), np.int8)[:, ::2]
    wrong = [
        QuantizedTokens(x.codes.astype(np.int16), x.scales, x.sums),  # type: ignore[arg-type]
        QuantizedTokens(x.codes[0], x.scales, x.sums),
        QuantizedTokens(strided, x.scales, x.sums),
        QuantizedTokens(x.codes[:, :64].copy(), x.scales, x.sums),
        QuantizedTokens(x.codes, x.scales[:1], x.sums),
        QuantizedTokens(x.codes, x.scales.astype(np.float64), x.sums),  # type: ignore[arg-type]
        QuantizedTokens(x.codes, x.scales, x.sums[:, 0]),
        QuantizedTokens(x.codes, x.scales, x.sums + 1),
        QuantizedTokens(np.ones((2, 128), np.int8), x.scales, x.sums),
    ]
    for bad in wrong:
        assert refused(lambda bad=bad: cpu.linear_quantized(ternary(), bad)).facts["object"]


def test_unaligned_inputs() -> None:
    memory = np.zeros(4 * 64 + 1, np.uint8)
    unaligned = memory[1:].view(np.float32)
    weight = np.ones(64, np.float32)
    error = refused(lambda: cpu.rms_norm(unaligned, weight, 1e-5))
    assert "aligned" in error.facts["expected"]
    dense = Matrix("f32", memory[1:], 1, 64)
    x = np.ones((1, 64), np.float32)
    assert refused(lambda: cpu.linear_f32(dense, x)).facts["object"] == "weights"


def test_codes_that_grouped_formats_never_have() -> None:
    matrix = Matrix("int8", np.zeros(cpu.format_nbytes("int8", 16, 64), np.uint8), 16, 64)
    x = cpu.quantize_groups(np.ones((1, 64), np.float32))
    x.codes[0, 3] = -128
    assert refused(lambda: cpu.linear_quantized(matrix, x)).facts["found"] == "-128"


def test_dense_formats_take_no_codes() -> None:
    dense = Matrix("f32", np.zeros(4 * 16 * 64, np.uint8), 16, 64)
    assert refused(lambda: cpu.linear_quantized(dense, tokens())).facts["found"] == "f32"


@pytest.mark.parametrize("rows", [(1, 16), (0, 15), (0, 33), (16, 0), (-16, 16)])
def test_wrong_row_ranges(rows: tuple[int, int]) -> None:
    matrix = ternary(32)
    refused(lambda: cpu.linear_quantized(matrix, tokens(), rows=rows))


def test_wrong_attention_arguments() -> None:
    q = np.ones((4, 8), np.float32)
    row = np.ones(8, np.float32)
    cache = KvHead.empty("f16", 8, 64)
    for position in range(3):
        cpu.store_kv(cache, position, row, row)
    good = {"first": 0, "last": 2, "scale": 1.0}
    cpu.attention(q, cache, **good)
    for bad in ({"last": 64}, {"first": -1}, {"first": 3}, {"last": -1}):
        refused(lambda bad=bad: cpu.attention(q, cache, **{**good, **bad}))
    for data in (cache.data[:-1], cache.data[:0], cache.data[::2], cache.data.view(np.int8)):
        broken = replace(cache, data=data)
        refused(lambda broken=broken: cpu.attention(q, broken, **good))
        refused(lambda broken=broken: cpu.store_kv(broken, 0, row, row))
    shifted = np.zeros(len(cache.data) + 1, np.uint8)[1:]
    refused(lambda: cpu.attention(q, replace(cache, data=shifted), **good))
    refused(lambda: cpu.attention(q, replace(cache, kv_type="q4"), **good))
    refused(lambda: cpu.attention(np.ones((2, 7), np.float32), cache, **good))
    refused(lambda: cpu.store_kv(cache, 64, row, row))
    refused(lambda: cpu.store_kv(cache, -1, row, row))
    refused(lambda: cpu.store_kv(cache, 0, row, row[:6].copy()))


def test_wrong_attention_measurements() -> None:
    good = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "positions": 70, "isa": "scalar"}
    found = bench_attention("int8", **good, seconds=0.001, working_set_bytes=1)
    assert found.kv_bytes == 2 * 2 * kv_block_bytes("int8", 8)
    assert found.calls >= 1
    assert found.kv_bytes_per_s > 0
    for bad in (
        {"n_heads": 3}, {"n_heads": 0}, {"n_kv_heads": 0}, {"head_dim": 7}, {"positions": 0},
        {"threads": 0}, {"seconds": 0.0}, {"working_set_bytes": 0}, {"isa": "mmx"},
    ):  # fmt: skip
        refused(lambda bad=bad: bench_attention("f16", **{**good, **bad}))
    refused(lambda: bench_attention("q4", **good))


def test_read_only_weights_are_fine() -> None:
    matrix = ternary()
    matrix.data.flags.writeable = False
    cpu.linear_quantized(matrix, tokens())


def test_forced_instruction_set_is_the_one_used(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(instruction_sets.FORCE_VARIABLE, isa)
    assert instruction_sets.best() == isa


@pytest.mark.parametrize("name", ["avx9", "AVX2", " "])
def test_unknown_forced_instruction_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(instruction_sets.FORCE_VARIABLE, name)
    error = refused(instruction_sets.best)
    assert error.facts["isa"] == name
    assert error.facts["available"] == list(instruction_sets.available())


def test_instruction_set_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "scalar",
        "avx2",
        "avxvnni",
        "avx512vnni",
        "avx512vbmi",
        "amx",
        "neon",
        "neon_dotprod",
        "neon_i8mm",
    }
    missing = sorted(known - set(instruction_sets.available()))
    assert missing, "no machine has all of them"
    monkeypatch.setenv(instruction_sets.FORCE_VARIABLE, missing[0])
    assert refused(instruction_sets.best).facts["isa"] == missing[0]


def test_best_is_available_and_never_plain_where_vectors_run() -> None:
    available = instruction_sets.available()
    assert available[0] == "scalar"
    assert instruction_sets.best() == available[-1]


def test_build_info() -> None:
    info = build_info()
    assert set(instruction_sets.available()) <= set(info.isas)
    assert re.fullmatch(r"\D*(GCC|[Cc]lang)\D* \d+\.\d.*", info.compiler)


@pytest.mark.parametrize("name", ["ternary", "int4_g32", "bf16"])
def test_measurements(name: str) -> None:
    rate = bench_linear(
        name, 256, 256, 2, isa="scalar", threads=2, seconds=0.01, working_set_bytes=1 << 20
    )
    assert rate.calls >= 1
    assert rate.weight_bytes_per_s > 0
    assert rate.macs == 256 * 256 * 2
    assert measure_read_bandwidth(1 << 22, 2, 0.01) > 1e6
    refused(lambda: measure_read_bandwidth(-1))
    refused(lambda: bench_linear(name, 16, 16, 0, isa="scalar"))
