"""`qh-chat bench`: its options, its JSON, and that every row means what it says."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qh_chat.benchmark import shapes
from qh_chat.benchmark.limits import Limits
from qh_chat.benchmark.measuring import Effort, PeerRuns, measure_model
from qh_chat.benchmark.rows import Row
from qh_chat.benchmark.shapes import SHAPES, BenchShape, random_model
from qh_chat.benchmark.starting import measure_start
from qh_chat.commands import bench
from qh_kernels import isa as instruction_sets
from qh_kernels.bench import ReadBench
from qh_kernels.decoder import Decoder
from qh_runtime.architectures import decoder_shape
from qh_runtime.formats import base as formats
from qh_runtime.hardware.bandwidth import read_bandwidth
from qh_runtime.planner.plan import WeightFormats
from tests.support.bench_rows import TINY_BITNET, TINY_LLAMA
from tests.support.cli import command, qh_environment, run_qh
from tests.support.specs import TINY_QWEN3

REQUIRED = {
    "kind", "shape", "format", "isa", "threads", "tokens_per_s", "bytes_per_token", "gb_per_s",
    "fraction_of_bandwidth", "peer", "peer_tokens_per_s", "ratio",
}  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tiny shapes and short measurements."""
    for shape in (TINY_BITNET, TINY_LLAMA):
        monkeypatch.setitem(shapes.SHAPES, shape.name, shape)  # type: ignore[arg-type]
    monkeypatch.setattr(bench, "_MEMORY_BYTES", 4 << 20)
    effort = Effort(rounds=2, seconds=0.005, prompt_tokens=70, contexts=(40,))
    monkeypatch.setattr(bench, "_QUICK", effort)


def check_rows(rows: list[dict[str, Any]]) -> None:
    """What holds for every row of a model."""
    for row in rows:
        assert set(row) >= REQUIRED
        assert row["tokens_per_s"] > 0
        assert row["spread"][0] <= row["tokens_per_s"] <= row["spread"][1]
        assert row["gb_per_s"] == pytest.approx(row["tokens_per_s"] * row["bytes_per_token"] / 1e9)
        assert row["fraction_of_bandwidth"] > 0
        if row["kind"] == "prefill" and row["isa"] != "scalar":
            assert row["fraction_of_peak"] > 0
        if row["kind"] == "decode":
            assert 0 < row["linear_fraction"] < 1


def test_rows_of_a_small_shape() -> None:
    config = {**TINY_QWEN3, "max_position_embeddings": 400}
    model = random_model(BenchShape("small", config, WeightFormats("int8", "f16", "int8")))
    with Decoder(decoder_shape(model.spec), model.weights, context_length=8, threads=1) as decoder:
        # The decoder counts the same weights, and the embedding that a step does not read.
        assert decoder.weights_bytes == model.token_bytes + model.weights.embedding.data.nbytes
    linears = [x for layer in model.spec.layers for x in layer.linears]
    macs = sum(x.out_features * x.in_features for x in linears)
    head_macs = model.spec.vocab_size * model.spec.hidden_size
    packed = sum(formats.get("int8").nbytes((x.out_features, x.in_features)) for x in linears)
    effort = Effort(2, 0.005, 100, (30, 60), kernel_tokens=(1, 8))
    said: list[str] = []
    rows = list(
        measure_model(
            model,
            ("kernels", "decode", "prefill"),
            instruction_sets.best(),
            2,
            Limits(ReadBench(1 << 22), 0.002),
            1 << 30,
            effort,
            say=said.append,
        )
    )
    assert len(said) == len(rows)
    assert [(x.kind, x.tokens, x.context) for x in rows] == [
        ("kernels", 1, None), ("kernels", 8, None), ("decode", None, 30), ("decode", None, 60),
        ("prefill", 100, None),
    ]  # fmt: skip
    check_rows([x.to_dict() for x in rows])
    one, eight, near, far, prompt = rows
    assert (one.bytes_per_token, eight.bytes_per_token) == (packed, packed // 8)
    assert one.macs_per_token == eight.macs_per_token == prompt.macs_per_token == macs
    assert near.macs_per_token == macs + head_macs
    # 30 positions more of keys and values in float16, in rows that are padded.
    spec = model.spec
    kv = 30 * 4 * spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim
    assert kv <= (far.bytes_per_token or 0) - (near.bytes_per_token or 0) < 3 * kv
    assert near.bytes_per_token > model.token_bytes  # type: ignore[operator]
    assert prompt.bytes_per_token == model.token_bytes // 64
    assert all(x.in_cache for x in rows)


def test_a_peer_takes_turns() -> None:
    model = random_model(TINY_LLAMA)
    log: list[tuple[str, int]] = []

    def decode(context: int, seconds: float) -> float:
        log.append(("decode", context))
        return 50.0

    def prefill(tokens: int) -> float:
        log.append(("prefill", tokens))
        return 500.0

    peer = PeerRuns("p Q", 1, 1000, decode, prefill)
    effort = Effort(3, 0.002, 64, (20,))
    limits = Limits(ReadBench(1 << 22), 0.002)
    kinds = ("decode", "prefill")
    isa = instruction_sets.best()
    rows = list(measure_model(model, kinds, isa, 1, limits, 0, effort, [peer, peer]))
    assert log == [*[("decode", 20)] * 6, *[("prefill", 64)] * 6]
    assert [(x.kind, x.peer) for x in rows] == [(x, "p Q") for x in kinds for _ in range(2)]
    for row in rows:
        theirs = 50.0 if row.kind == "decode" else 500.0
        assert row.peer_tokens_per_s == theirs
        assert row.ratio == pytest.approx((row.tokens_per_s or 0) / theirs)
        assert row.peer_bytes_per_token == (1000 if row.kind == "decode" else 1000 // 64)
        assert row.in_cache is False


@pytest.mark.usefixtures("small")
def test_json_of_small_shapes(qh: Callable[..., Any], tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    done = qh(
        "bench", "kernels", "decode", "prefill", "--shapes", "tiny-bitnet,tiny-llama", "--quick",
        "--formats", "ternary,nf4", "--threads", "1,2", "--json", "--plot", str(plot),
    )  # fmt: skip
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert set(report) >= {"rows", "roofline", "quick", "interrupted", "elapsed_s", "foreign_cpu"}
    rows = report["rows"]
    check_rows(rows)
    expected = [
        (kind, shape, name, threads)
        for shape, name in (("tiny-bitnet", "ternary"), ("tiny-llama", "nf4"))
        for threads in (1, 2)
        for kind in ("kernels", "decode", "prefill")
    ]
    assert [(x["kind"], x["shape"], x["format"], x["threads"]) for x in rows] == expected
    assert {x["isa"] for x in rows} == {instruction_sets.best()}
    assert all(x["peer"] is None and x["ratio"] is None for x in rows)
    read = report["roofline"]["read_bandwidth"]
    assert {x["threads"] for x in read} == {1, 2}
    assert all(x["gb_per_s"] > 0 for x in read)
    peaks = report["roofline"]["mac_peaks"]
    assert all(x["gmacs_per_s"] > 0 for x in peaks)
    assert "about" in done.err
    picture = ET.parse(plot)
    points = [x for x in picture.iter() if "row" in x.get("class", "").split()]
    assert len(points) == len(rows)


@pytest.mark.usefixtures("small")
def test_every_instruction_set_can_be_chosen(qh: Callable[..., Any]) -> None:
    arguments = ("bench", "kernels", "--shape", "tiny-llama", "--quick", "--threads", "1")
    done = qh(*arguments, "--formats", "int4_g128", "--isa", "all", "--json")
    assert done.code == 0, done.err
    found = [x["isa"] for x in json.loads(done.out)["rows"]]
    assert found == list(instruction_sets.available())


@pytest.mark.usefixtures("small")
def test_text_and_tables(qh: Callable[..., Any]) -> None:
    arguments = ("bench", "kernels", "--shapes", "tiny-bitnet", "--quick", "--threads", "1")
    done = qh(*arguments)
    assert done.code == 0, done.err
    assert done.out.startswith("kernels  tiny-bitnet   ternary")
    assert "GB/s" in done.out
    done = qh(*arguments, "--markdown", "--batch", "1,16")
    assert done.code == 0, done.err
    assert "| limit | 1 threads |" in done.out
    assert done.out.count("| tiny-bitnet | ternary ") == 2


@pytest.mark.usefixtures("small")
def test_the_built_in_model_is_measured(qh: Callable[..., Any]) -> None:
    done = qh("bench", "decode", "--shapes", "builtin", "--quick", "--threads", "1", "--json")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["rows"]
    assert (row["shape"], row["format"], row["kind"]) == ("builtin", "ternary", "decode")


@pytest.mark.usefixtures("small")
def test_an_interrupt_keeps_what_was_measured(
    qh: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> Iterator[Row]:
        yield Row("kernels", "s", "nf4", "avx2", 1, tokens_per_s=1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run_suite", interrupted)
    done = qh("bench", "--quick", "--json", "--threads", "1")
    assert done.code == 130
    report = json.loads(done.out)
    assert report["interrupted"] is True
    assert [x["tokens_per_s"] for x in report["rows"]] == [1.0]


def test_ctrl_c_of_a_real_run(home: Path) -> None:
    arguments = ("bench", "kernels", "decode", "--shapes", "builtin", "--rounds", "1000")
    arguments += ("--quick", "--json")
    with subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=qh_environment(home),
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if b"kernels" in line:
                break
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert json.loads(out)["interrupted"] is True
    assert b"Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--shapes", "gpt-5"), "bitnet-2b-4t"),
        (("--shape", "builtin,gpt-5"), "gpt-5"),
        (("decoding",), "prefill"),
        (("--formats", "int5"), "int4_g128"),
        (("--formats", "bf16"), "int4_g128"),
        (("--formats", "nf4", "--shapes", "bitnet-2b-4t"), "nf4"),
        (("--isa", "avx9"), "scalar"),
        (("--threads", "1,0"), "1 to 1024"),
        (("--threads", "2.5"), "2.5"),
        (("--context", ""), "--context"),
        (("--rounds", "1,2"), "--rounds"),
        (("--vs", "gpt"), "llama.cpp"),
        (("--plot", ""), "--plot"),
    ],
)
def test_wrong_options_are_usage_errors(
    qh: Callable[..., Any], arguments: tuple[str, ...], told: str
) -> None:
    done = qh("bench", *arguments)
    assert done.code == 2
    assert told in done.err
    assert done.out == ""


def test_what_cannot_be_measured_is_refused_at_once(qh: Callable[..., Any], tmp_path: Path) -> None:
    done = qh("bench", "--plot", str(tmp_path / "no/such/plot.svg"))
    assert done.code == 3
    assert "--plot" in done.err
    done = qh("bench", "--vs", "llama.cpp", "--peer-python", sys.executable)
    assert done.code == 3
    assert "qh-chat[gguf]" in done.err


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
        assert row.kind == "load"
        assert row.format == "ternary"
        assert row.start_to_first_token_s is not None
        assert 0 < row.start_to_first_token_s < 30
        # The process dominates a model this small; the plan counts it too.
        assert row.rss_over_plan == pytest.approx(1, abs=0.15)


@pytest.mark.slow
def test_json_of_a_quick_run(home: Path) -> None:
    done = run_qh(home, "bench", "--quick", "--json", timeout_s=400)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = report["rows"]
    check_rows([row for row in rows if row["kind"] != "load"])
    measured = {row["format"] for row in rows}
    wanted = {"ternary", "int4_g32", "int4_g128", "nf4", "mxfp4", "nvfp4"}
    # A busy machine has no time left for all of them, and then the run says which.
    for missing in wanted - measured:
        assert re.search(rf"\b{missing}\b.*left out, the time is over", done.stderr), missing
    assert {row["kind"] for row in rows} == {"kernels", "decode", "prefill", "load"}
    assert all(row["gb_per_s"] > 0 for row in report["roofline"]["read_bandwidth"])
    # The rest of the cache that so short a prompt leaves untouched is below 2 % of the plan. Of the
    # head, which is scanned in few bits, a token reads some rows: the plan counts all that may come
    # in over a conversation.
    starts = [row for row in rows if row["kind"] == "load"]
    spec = SHAPES["bitnet-2b-4t"].spec
    head_bytes = formats.get("bf16").nbytes((spec.vocab_size, spec.hidden_size))
    for state in ("cold", "warm"):
        start = next(x for x in starts if (x["shape"], x["state"]) == ("bitnet-2b-4t", state))
        planned = start["planned_bytes"]
        assert 0.96 * (planned - head_bytes) < start["rss_bytes"] < 1.04 * planned, state
    assert not list((home / "cache").glob("qh-bench-*")), "the checkpoint is removed again"
