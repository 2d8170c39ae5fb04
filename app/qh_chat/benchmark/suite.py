"""Runs a selection: makes one model after the other, measures it, and lets it go."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qh_chat.benchmark.cases import (
    BUILTIN,
    Budget,
    Selection,
    model_bytes,
    shapes_of,
    with_row_seconds,
)
from qh_chat.benchmark.checkpoint import write_bitnet_folder
from qh_chat.benchmark.limits import Limits
from qh_chat.benchmark.measuring import PeerRuns, measure_model
from qh_chat.benchmark.peer import peer_runs
from qh_chat.benchmark.peer_models import peers_of
from qh_chat.benchmark.rows import Row
from qh_chat.benchmark.shapes import (
    SHAPES,
    BenchModel,
    BenchShape,
    Tables,
    random_model,
    random_tables,
)
from qh_chat.benchmark.starting import measure_start
from qh_runtime.errors import SessionError, StoreError
from qh_runtime.formats import base as formats

__all__ = ["Machine", "run_suite"]

# Of loads: everything that is planned with so short a context is also touched, so the two can be
# compared.
_START_CONTEXT = 256
_START_SHAPE = "bitnet-2b-4t"
# A peer's cache holds what its rows need; a prompt before a longer context would take it minutes.
_PEER_CONTEXT = 1024
_PIECE_TOKENS = 256
_GIGABYTE = 1e9
# In gigabytes of model: what a step takes besides reading its model, and a load of each shape.
_STEP_COST = 0.5
_LOAD_COSTS = {BUILTIN: 0.5, _START_SHAPE: 4.0}


@dataclass(frozen=True)
class Machine:
    """What a run needs to know of where it runs.

    Attributes:
        cache_bytes: of the largest cache.
        usable_bytes: of memory; None where the system does not tell.
        scratch: folder for large files, which are removed again.
        peer_python: a Python with the peer's package; None measures no peer.
        builtin: makes the built-in model; None where it is not installed.
        builtin_folder: its files.
    """

    cache_bytes: int
    usable_bytes: int | None
    scratch: Path
    peer_python: str | None
    builtin: Callable[[], BenchModel] | None
    builtin_folder: Path | None


def run_suite(
    selection: Selection,
    machine: Machine,
    limits: Limits,
    seconds: float | None,
    say: Callable[[str], None],
) -> Iterator[Row]:
    """Yield rows as they are measured.

    Args:
        seconds: that it may take; None is as long as it takes. Steps for which nothing is left are
            left out, and said so.
        say: told what comes next and about how long the rest takes.
    """
    yield from _Suite(selection, machine, limits, seconds, say).run()


class _Suite:
    def __init__(
        self,
        selection: Selection,
        machine: Machine,
        limits: Limits,
        seconds: float | None,
        say: Callable[[str], None],
    ) -> None:
        self._selection = selection
        self._machine = machine
        self._limits = limits
        self._say = say
        self._shapes = list(shapes_of(selection)) if selection.model_kinds else []
        self._loads = [
            x
            for x in (BUILTIN, _START_SHAPE)
            if "load" in selection.kinds and x in selection.shapes
        ]
        self._has_builtin = bool(
            selection.model_kinds and BUILTIN in selection.shapes and machine.builtin is not None
        )
        runs = len(selection.isas) * len(selection.threads)
        self._cost = {id(x): _STEP_COST + model_bytes(x) / _GIGABYTE for x in self._shapes}
        costs = [self._cost[id(x)] for x in self._shapes for _ in range(runs)]
        costs += [_STEP_COST] * (runs if self._has_builtin else 0)
        costs += [_LOAD_COSTS[x] for x in self._loads]
        self._budget = Budget(costs, seconds)

    def run(self) -> Iterator[Row]:
        # Loads first: what a short run has no time left for are the last shapes.
        for name in self._loads:
            yield from self._load(name)
            self._budget.done(_LOAD_COSTS[name])
        if self._has_builtin:
            assert self._machine.builtin is not None
            self._say_next(f"{BUILTIN}: loading")
            yield from self._measured(self._machine.builtin(), _STEP_COST, None, None)
        tables: tuple[object, Tables] | None = None
        name = ""
        with contextlib.ExitStack() as stack:
            folder: Path | None = None
            for shape in self._shapes:
                if shape.name != name and self._machine.peer_python is not None:
                    # The peer's files of one shape serve all formats of it.
                    stack.close()
                    folder = stack.enter_context(self._scratch())
                name = shape.name
                if not self._fits(shape):
                    continue
                # Layers do not matter to the tables; whether they are one or two does.
                key = (name, shape.spec.tied_head)
                if tables is None or tables[0] != key:
                    tables = None
                    self._say_next(f"{shape.label}: making embedding and head")
                    tables = (key, random_tables(shape))
                self._say_next(f"{shape.label} {shape.formats.linear}: making the model")
                model = random_model(shape, tables[1])
                yield from self._measured(model, self._cost[id(shape)], shape, folder)
                del model

    def _measured(
        self, model: BenchModel, cost: float, shape: BenchShape | None, folder: Path | None
    ) -> Iterator[Row]:
        for isa in self._selection.isas:
            for threads in self._selection.threads:
                yield from self._steps(model, isa, threads, cost, shape, folder)
                self._budget.done(cost)

    def _steps(
        self,
        model: BenchModel,
        isa: str,
        threads: int,
        cost: float,
        shape: BenchShape | None,
        folder: Path | None,
    ) -> Iterator[Row]:
        selection = self._selection
        kinds = selection.model_kinds
        seconds = self._budget.step_seconds(cost)
        head = f"{model.name} {model.format}, {isa}, {threads} threads"
        if seconds is not None and seconds <= 0:
            self._say(f"{head}: left out, the time is over")
            return
        effort = with_row_seconds(selection.effort, seconds, len(kinds))

        def say(text: str) -> None:
            self._say_next(f"{head}: {text}")

        def rows(kinds: Sequence[str], contexts: Sequence[int], *peers: PeerRuns) -> Iterator[Row]:
            kept = tuple(x for x in kinds if x != "decode" or contexts)
            yield from measure_model(
                model,
                kept,
                isa,
                threads,
                self._limits,
                self._machine.cache_bytes,
                dataclasses.replace(effort, contexts=tuple(contexts)),
                peers,
                say,
            )

        peer_python = self._machine.peer_python
        contexts = effort.contexts
        if folder is None or shape is None or peer_python is None:
            yield from rows(kinds, contexts)
            return
        near = [x for x in contexts if x <= _PEER_CONTEXT - 2 * _PIECE_TOKENS]
        mixes = peers_of(model.format, formats.get(model.format).family)
        common = [x for x in kinds if x == "prefill" or (x == "decode" and near)]
        if not mixes or not common:
            yield from rows(kinds, contexts)
            return
        yield from rows(
            [x for x in kinds if x not in common or x == "decode"],
            [x for x in contexts if x not in near],
        )
        measured = False
        for mix in mixes:
            say(f"starting llama.cpp {mix}")
            try:
                with peer_runs(folder, model.spec, mix, _PEER_CONTEXT, peer_python) as (
                    process,
                    peer,
                ):
                    process.ask(do="threads", threads=threads)
                    for row in rows(common, near, peer):
                        measured = True
                        yield row
            except SessionError as error:
                self._say(f"{head}: llama.cpp {mix}: {error.message}")
            except OSError as error:
                raise self._unwritable(error) from error
        if not measured:
            yield from rows(common, near)

    def _fits(self, shape: BenchShape) -> bool:
        usable = self._machine.usable_bytes
        # Half a gigabyte for the memory that is read as the limit, and for everything else.
        needed = model_bytes(shape) + (1 << 30)
        if usable is None or needed <= usable:
            return True
        self._say(
            f"{shape.label} {shape.formats.linear}: left out: it needs {needed / 1e9:.1f} GB of "
            f"memory, and {usable / 1e9:.1f} are free"
        )
        for _ in self._selection.isas:
            for _ in self._selection.threads:
                self._budget.done(self._cost[id(shape)])
        return False

    def _load(self, name: str) -> Iterator[Row]:
        """Starts of a whole process: cold, then warm."""
        seconds = self._budget.step_seconds(_LOAD_COSTS[name])
        if seconds is not None and seconds <= 0:
            self._say(f"{name}: starts are left out, the time is over")
            return
        threads = max(self._selection.threads)
        with self._scratch() as home:
            if name == BUILTIN:
                if self._machine.builtin_folder is None:
                    return
                folder = self._machine.builtin_folder
            else:
                folder = home / "model"
                self._say_next(f"{name}: writing a checkpoint of random weights")
                try:
                    write_bitnet_folder(folder, SHAPES[name])
                except OSError as error:
                    raise self._unwritable(error) from error
            for state in ("cold", "warm"):
                self._say_next(f"{name}: {state} start")
                yield measure_start(name, folder, home, state, threads, _START_CONTEXT)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder that is gone afterwards."""
        place = self._machine.scratch
        try:
            place.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(prefix="qh-bench-", dir=place)
        except OSError as error:
            raise self._unwritable(error) from error
        with folder as name:
            yield Path(name)

    def _unwritable(self, error: OSError) -> StoreError:
        place = self._machine.scratch
        return StoreError(
            f"{place}: files of a benchmark cannot be written: {error.strerror}",
            hint="free some space, or measure other --shapes, or without load and --vs",
            path=str(place),
        )

    def _say_next(self, text: str) -> None:
        left = self._budget.left_s()
        self._say(text if left is None else f"{text} (about {_duration(left)} left)")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
