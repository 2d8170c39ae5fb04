"""`qh-chat bench`: the roofline first, then how near to it models of several sizes come."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qh_chat import __version__
from qh_chat.benchmark.cases import BUILTIN, KINDS, Selection, formats_of
from qh_chat.benchmark.cpu_load import CpuWatch
from qh_chat.benchmark.limits import Limits
from qh_chat.benchmark.measuring import Effort
from qh_chat.benchmark.peer import peer_version
from qh_chat.benchmark.plot import roofline_svg
from qh_chat.benchmark.rows import Row
from qh_chat.benchmark.shapes import SHAPES, BenchModel, token_bytes
from qh_chat.benchmark.suite import Machine, run_suite
from qh_chat.benchmark.table import markdown
from qh_chat.commands.context import Context
from qh_chat.inert import inert
from qh_kernels import isa as instruction_sets
from qh_kernels.bench import ReadBench
from qh_runtime.errors import ModelNotFoundError, StoreError
from qh_runtime.formats import base as formats

__all__ = ["run"]

_EXIT_INTERRUPTED = 130
_MEMORY_BYTES = 512 << 20
_SIZES_MIB = (1, 4, 16, 64, 128, 256, 512)
_QUICK_SIZES_MIB = (1, 16, 512)
# Of the 50 s that --quick may take; the rest is for the slowest step that begins just in time.
_QUICK_SECONDS = 42.0

_FULL = Effort(rounds=7, seconds=0.4, prompt_tokens=512, contexts=(256,), row_seconds=40.0)
_QUICK = Effort(rounds=3, seconds=0.15, prompt_tokens=64, contexts=(256,))


def run(args: argparse.Namespace, context: Context) -> int:
    """Measure and print; exit code 0, or 130 after an interrupt, with the rows until then."""
    started = time.perf_counter()
    selection = _selection(args, context)
    peer_python = None
    versions: dict[str, Any] = {"qh-chat": __version__}
    if args.vs is not None:
        peer_python = args.peer_python or sys.executable
        versions[args.vs] = f"llama-cpp-python {peer_version(peer_python)}"
    plot = None if args.plot is None else _plot_place(args.plot)
    machine = _machine(context, peer_python)
    before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    watch = CpuWatch()
    rows: list[Row] = []
    limits = Limits(ReadBench(_MEMORY_BYTES), seconds=0.05 if args.quick else 0.1)
    interrupted = False
    try:
        _say("roofline: reading memory and multiplying")
        sizes = _QUICK_SIZES_MIB if args.quick else _SIZES_MIB
        limits.measure(selection.threads, sizes, rounds=1 if args.quick else 3)
        seconds = _QUICK_SECONDS - (time.perf_counter() - started) if args.quick else None
        for row in run_suite(selection, machine, limits, seconds, _say):
            rows.append(row)
            if not args.json and not args.markdown:
                print(row.line(), flush=True)
    except KeyboardInterrupt:
        interrupted = True
        _say("interrupted; this is what was measured until then")
    load = watch.load()
    roofline = limits.roofline()
    report = {
        "rows": [row.to_dict() for row in rows],
        "roofline": roofline,
        "version": __version__,
        "versions": versions,
        "quick": args.quick,
        "interrupted": interrupted,
        "elapsed_s": time.perf_counter() - started,
        "load_average_before": before,
        "foreign_cpu": load.foreign,
        "steal_cpu": load.steal,
    }
    if plot is not None:
        _write(plot, roofline_svg(rows, roofline, "qh-chat bench"))
    if args.json:
        print(json.dumps(report, allow_nan=False))
    elif args.markdown:
        print(markdown(rows, roofline), end="")
    else:
        _print_roofline(roofline)
    return _EXIT_INTERRUPTED if interrupted else 0


def _selection(args: argparse.Namespace, context: Context) -> Selection:
    """What the options ask for. A name that there is not is a usage error."""
    kinds = _known("argument KIND", args.kinds or KINDS, KINDS, context)
    shapes = _known("argument --shapes", args.shapes, (BUILTIN, *SHAPES), context)
    if args.shapes is None and args.quick:
        # Of the formats of large models, a part of the largest is as good as any whole one.
        shapes = tuple(x for x in shapes if x != "llama-3.2-1b")
    packed = [x for x in formats.names() if formats.get(x).family != "dense"]
    wanted = args.formats
    if wanted is not None:
        wanted = _known("argument --formats", wanted, packed, context)
    if args.isa == ("all",):
        isas = instruction_sets.available()
    elif args.isa is None:
        isas = (instruction_sets.best(),)
    else:
        isas = _known("argument --isa", args.isa, instruction_sets.available(), context)
    threads = args.threads
    if threads is None:
        settings = context.settings()
        most = settings.models.threads or context.models(settings).profile().usable_threads
        threads = (most,) if args.quick else tuple(sorted({1, most}))
    effort = _QUICK if args.quick else _FULL
    selection = Selection(
        kinds=tuple(kinds),
        shapes=tuple(shapes),
        formats=wanted,
        isas=tuple(isas),
        threads=tuple(threads),
        quick=args.quick,
        effort=Effort(
            rounds=effort.rounds if args.rounds is None else args.rounds[0],
            seconds=effort.seconds,
            prompt_tokens=effort.prompt_tokens,
            contexts=effort.contexts if args.contexts is None else args.contexts,
            kernel_tokens=effort.kernel_tokens
            if args.kernel_tokens is None
            else args.kernel_tokens,
            row_seconds=effort.row_seconds,
        ),
    )
    if wanted is not None and not any(
        formats_of(selection, SHAPES[x]) for x in shapes if x != BUILTIN
    ):
        context.usage_error(
            f"argument --formats: none of {', '.join(wanted)} is a format of {', '.join(shapes)}"
        )
    return selection


def _known(
    what: str, names: Sequence[str] | None, known: Sequence[str], context: Context
) -> tuple[str, ...]:
    """The names, or all that are known where none are given."""
    if names is None:
        return tuple(known)
    for name in names:
        if name not in known:
            context.usage_error(f"{what}: expected one of {', '.join(known)}, found {name!r}")
    return tuple(names)


def _machine(context: Context, peer_python: str | None) -> Machine:
    models = context.models(context.settings())
    profile = models.profile()
    folder = None
    try:
        folder = models.entry(None).folder
    except ModelNotFoundError as error:
        _say(f"{BUILTIN}: left out: {error}")
    return Machine(
        cache_bytes=max((x.size_bytes for x in profile.cpu.caches.value or ()), default=0),
        usable_bytes=profile.memory.usable_bytes.value,
        scratch=context.paths.packed_dir.parent,
        peer_python=peer_python,
        builtin=None if folder is None else lambda: _builtin(context),
        builtin_folder=folder,
    )


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
    return BenchModel(BUILTIN, planned.spec, weights, planned.format, token_bytes(weights))


def _plot_place(name: str) -> Path:
    """Where the picture goes; found out before minutes of measuring.

    Raises:
        StoreError: nothing can be written there.
    """
    path = Path(name)
    if not path.parent.is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise StoreError(
            f"{name}: expected a file in a folder that can be written to",
            hint="name another --plot",
            path=name,
        )
    return path


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise StoreError(
            f"{path}: the picture cannot be written: {error.strerror}",
            hint="free some space, or name another --plot",
            path=str(path),
        ) from error


def _print_roofline(roofline: dict[str, Any]) -> None:
    for found in roofline["read_bandwidth"]:
        print(
            f"reading {found['bytes'] / 2**20:,.0f} MiB, {found['threads']} threads: "
            f"{found['gb_per_s']:.1f} GB/s"
        )
    for found in roofline["mac_peaks"]:
        print(
            f"{found['name']}, {found['threads']} threads: "
            f"{found['gmacs_per_s']:,.0f} billion multiply-adds a second"
        )


def _say(text: str) -> None:
    print(f"qh-chat bench: {inert(text)}", file=sys.stderr, flush=True)
