"""`qh-chat bench`: its JSON, the random models it measures, and the checkpoint it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qh_chat.benchmark.shapes import SHAPES, BenchShape, matrix_bytes, random_model
from qh_chat.benchmark.speed import measure_speed
from qh_chat.benchmark.starting import measure_start
from qh_kernels.decoder import Decoder
from qh_runtime.architectures import decoder_shape
from qh_runtime.formats import base as formats
from qh_runtime.hardware.bandwidth import read_bandwidth
from qh_runtime.planner.plan import WeightFormats
from tests.support.cli import run_qh
from tests.support.specs import TINY_QWEN3

SPEED_KEYS = {
    "kind", "shape", "format", "isa", "threads", "tokens_per_s", "bytes_per_token", "gb_per_s",
    "fraction_of_bandwidth",
}  # fmt: skip


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
    ],
)
def test_shapes_have_the_published_sizes(name: str, linear_bytes: int, head_bytes: int) -> None:
    shape = SHAPES[name]
    weight_format = formats.get(shape.formats.linear)
    sizes = [
        weight_format.nbytes((x.out_features, x.in_features))
        for layer in shape.spec.layers
        for x in layer.linears
    ]
    # Row scales of the ternary layers come on top of the published 2 bits a weight.
    assert abs(sum(sizes) - linear_bytes) < 0.01 * linear_bytes
    head = formats.get(shape.formats.head)
    assert head.nbytes((shape.spec.vocab_size, shape.spec.hidden_size)) == head_bytes


def test_speed_rows_of_a_small_shape() -> None:
    config = {**TINY_QWEN3, "max_position_embeddings": 200}
    model = random_model(BenchShape("small", config, WeightFormats("int8", "f16", "int8")))
    with Decoder(decoder_shape(model.spec), model.weights, context_length=8, threads=1) as decoder:
        # The decoder counts the same weights, and the embedding that a step does not read.
        assert decoder.weights_bytes == model.token_bytes + model.weights.embedding.data.nbytes
    decode, prefill = measure_speed(model, 1, 1e9, 1 << 30, 0.05, 64)
    assert (decode.kind, prefill.kind) == ("decode", "prefill")
    for row in (decode, prefill):
        assert row.tokens_per_s > 0
        assert row.spread[0] <= row.tokens_per_s <= row.spread[1]
        assert row.gb_per_s == pytest.approx(row.tokens_per_s * row.bytes_per_token / 1e9)
        assert row.fraction_of_bandwidth == pytest.approx(row.gb_per_s)
        assert row.in_cache
    assert decode.bytes_per_token > model.token_bytes


def test_bandwidth_is_plausible() -> None:
    fact = read_bandwidth(1, seconds=0.05, tries=1)
    assert fact.value is not None
    # From a crowded single board computer to more than any socket has.
    assert 2e8 < fact.value < 2e12
    assert "measured" in fact.source


def test_a_start_is_measured_against_its_plan(home: Path, tiny_model: Path) -> None:
    cold = measure_start("tiny", tiny_model, home, "cold", 1, 64)
    warm = measure_start("tiny", tiny_model, home, "warm", 1, 64)
    for row in (cold, warm):
        assert row.format == "ternary"
        assert 0 < row.start_to_first_token_s < 30
        # The process dominates a model this small; the plan counts it too.
        assert row.rss_over_plan == pytest.approx(1, abs=0.15)


def test_unknown_shapes_are_usage_errors(home: Path) -> None:
    done = run_qh(home, "bench", "--shape", "gpt-5")
    assert done.returncode == 2
    assert b"bitnet-2b-4t" in done.stderr


@pytest.mark.slow
def test_json_of_a_quick_run(home: Path) -> None:
    done = run_qh(home, "bench", "--quick", "--json", timeout_s=400)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = report["rows"]
    speed = [row for row in rows if row["kind"] in ("decode", "prefill")]
    starts = [row for row in rows if row["kind"] == "start"]
    assert {row["shape"] for row in speed} >= set(SHAPES)
    assert all(set(row) >= SPEED_KEYS for row in speed)
    assert all(row["gb_per_s"] > 0 for row in report["roofline"]["read_bandwidth"])
    # The rest of the cache that so short a prompt leaves untouched is below 2 % of the plan. Of the
    # head, which is scanned in few bits, a token reads some rows: the plan counts all that may come
    # in over a conversation.
    spec = SHAPES["bitnet-2b-4t"].spec
    head_bytes = formats.get("bf16").nbytes((spec.vocab_size, spec.hidden_size))
    for state in ("cold", "warm"):
        start = next(x for x in starts if (x["shape"], x["state"]) == ("bitnet-2b-4t", state))
        planned = start["planned_bytes"]
        assert 0.96 * (planned - head_bytes) < start["rss_bytes"] < 1.04 * planned, state
    assert not list((home / "cache").glob("qh-bench-*")), "the checkpoint is removed again"
