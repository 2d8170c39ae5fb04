"""`qh-chat bench`: the roofline first, then tokens per second of models of several sizes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from qh_chat import __version__
from qh_chat.benchmark.checkpoint import write_bitnet_folder
from qh_chat.benchmark.shapes import SHAPES, BenchModel, random_model, token_bytes
from qh_chat.benchmark.speed import SpeedRow, measure_speed
from qh_chat.benchmark.starting import StartRow, measure_start
from qh_chat.commands.context import Context
from qh_chat.commands.output import plain
from qh_runtime.errors import ModelNotFoundError, StoreError
from qh_runtime.hardware.bandwidth import read_bandwidth

__all__ = ["run"]

_BUILTIN = "builtin"
_START_SHAPE = "bitnet-2b-4t"
# Everything that is planned with so short a context is also touched, so the two can be compared.
_START_CONTEXT = 256

Row = SpeedRow | StartRow


@dataclasses.dataclass(frozen=True)
class _Effort:
    """How long to measure."""

    bandwidth_s: float
    seconds: float
    prompt_tokens: int
    all_thread_counts: bool


_QUICK = _Effort(bandwidth_s=0.4, seconds=1.5, prompt_tokens=128, all_thread_counts=False)
_FULL = _Effort(bandwidth_s=1.0, seconds=6.0, prompt_tokens=512, all_thread_counts=True)


def run(args: argparse.Namespace, context: Context) -> int:
    """Measure and print; exit code 0."""
    names = (_BUILTIN, *SHAPES)
    if args.shape is not None and args.shape not in names:
        context.usage_error(f"argument --shape: expected one of {', '.join(names)}")
    wanted = names if args.shape is None else (args.shape,)
    effort = _QUICK if args.quick else _FULL
    settings = context.settings({"models.threads": args.threads})
    profile = context.models(settings).profile()
    most = settings.models.threads or profile.usable_threads
    cache_bytes = max((x.size_bytes for x in profile.cpu.caches.value or ()), default=0)
    counts = sorted({1, most}) if effort.all_thread_counts else [most]

    before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    started = time.perf_counter()
    bandwidth = {}
    for threads in counts:
        _say(f"read bandwidth with {threads} threads")
        bandwidth[threads] = read_bandwidth(threads, effort.bandwidth_s).value or 0.0
    rows: list[Row] = []
    for row in _rows(wanted, context, effort, bandwidth, cache_bytes):
        rows.append(row)
        if not args.json:
            print(_line(row), flush=True)
    report = {
        "rows": [plain(dataclasses.asdict(row)) for row in rows],
        "roofline": {
            "read_bandwidth": [{"threads": x, "gb_per_s": bandwidth[x] / 1e9} for x in counts]
        },
        "version": __version__,
        "quick": args.quick,
        "elapsed_s": time.perf_counter() - started,
        "load_average_before": before,
    }
    if args.json:
        print(json.dumps(report, allow_nan=False))
    else:
        for threads in counts:
            print(f"read bandwidth, {threads} threads: {bandwidth[threads] / 1e9:.1f} GB/s")
    return 0


def _rows(
    wanted: tuple[str, ...],
    context: Context,
    effort: _Effort,
    bandwidth: dict[int, float],
    cache_bytes: int,
) -> Iterator[Row]:
    for name in wanted:
        _say(f"{name}: making the model")
        try:
            model = _builtin(context) if name == _BUILTIN else random_model(SHAPES[name])
        except ModelNotFoundError as error:
            _say(f"{name}: left out: {error}")
            continue
        for threads in bandwidth:
            _say(f"{name}: {threads} threads")
            # Again beside each model: other programs come and go, and can only lower what is seen.
            again = read_bandwidth(threads, effort.bandwidth_s, tries=1).value or 0.0
            rate = bandwidth[threads] = max(bandwidth[threads], again)
            yield from measure_speed(
                model, threads, rate, cache_bytes, effort.seconds, effort.prompt_tokens
            )
        del model
    threads = max(bandwidth)
    if _BUILTIN in wanted:
        yield from _builtin_starts(context, threads)
    if _START_SHAPE in wanted:
        yield from _large_starts(context, threads)


def _builtin(context: Context) -> BenchModel:
    """The built-in model as the loader makes it."""
    from qh_runtime.loader import plan_model
    from qh_runtime.options import LoadOptions
    from qh_runtime.packing import load_packed_model

    models = context.models(context.settings())
    entry = models.entry(None)
    planned = plan_model(entry, LoadOptions(), models.profile())
    packed = load_packed_model(
        planned.spec,
        planned.source,
        planned.layout,
        cache_folder=context.paths.packed_dir,
        memory_fallback=True,
    )
    assert packed is not None  # only a cancel function, which is not given, makes it None
    weights = packed.weights
    return BenchModel(_BUILTIN, planned.spec, weights, planned.format, token_bytes(weights))


def _builtin_starts(context: Context, threads: int) -> Iterator[StartRow]:
    try:
        folder = context.models(context.settings()).entry(None).folder
    except ModelNotFoundError:
        return
    with tempfile.TemporaryDirectory(prefix="qh-bench-") as home:
        for state in ("cold", "warm"):
            _say(f"{_BUILTIN}: {state} start")
            yield measure_start(_BUILTIN, folder, Path(home), state, threads, _START_CONTEXT)


def _large_starts(context: Context, threads: int) -> Iterator[StartRow]:
    """Starts of the 2B shape from a folder that is written for it and removed again."""
    place = context.paths.packed_dir.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="qh-bench-", dir=place) as temporary:
            home = Path(temporary)
            _say(f"{_START_SHAPE}: writing a checkpoint of random weights")
            write_bitnet_folder(home / "model", SHAPES[_START_SHAPE])
            for state in ("cold", "warm"):
                _say(f"{_START_SHAPE}: {state} start")
                yield measure_start(
                    _START_SHAPE, home / "model", home, state, threads, _START_CONTEXT
                )
    except OSError as error:
        raise StoreError(
            f"{place}: a benchmark checkpoint of 1.2 GB cannot be written: {error.strerror}",
            hint="free some space, or measure another --shape",
            path=str(place),
        ) from error


def _line(row: Row) -> str:
    head = f"{row.kind:8} {row.shape:13} {row.format:9} {row.isa:11} {row.threads} threads "
    if isinstance(row, StartRow):
        return (
            f"{head}{row.state} start {row.start_to_first_token_s:.2f} s to the first token, "
            f"memory {row.rss_bytes / 1e6:,.0f} of {row.planned_bytes / 1e6:,.0f} MB planned"
        )
    return (
        f"{head}{row.tokens_per_s:8.1f} tok/s  {row.bytes_per_token / 1e6:7.1f} MB/token  "
        f"{row.gb_per_s:5.1f} GB/s  {row.fraction_of_bandwidth:4.0%} of bandwidth"
        + (" (in cache)" if row.in_cache else "")
    )


def _say(text: str) -> None:
    print(f"qh-chat bench: {text}", file=sys.stderr, flush=True)
