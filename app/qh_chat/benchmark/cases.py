"""What is measured: which shapes in which formats, and how much of it fits the time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from qh_chat.benchmark.measuring import Effort
from qh_chat.benchmark.shapes import SHAPES, BenchShape, layer_bytes
from qh_runtime.formats import base as formats

__all__ = [
    "BUILTIN",
    "KINDS",
    "QUICK_FORMATS",
    "Budget",
    "Selection",
    "formats_of",
    "model_bytes",
    "shapes_of",
]

KINDS = ("kernels", "decode", "prefill", "load")
BUILTIN = "builtin"

# Packed layers of a format that a quick run reads, at least: more than any cache.
_QUICK_BYTES = 512 << 20
# One of each kind of arithmetic and size; further ones are named with --formats.
QUICK_FORMATS = (
    "int4_g32",
    "int4_g128",
    "nf4",
    "mxfp4",
    "nvfp4",
    "aqlm_2x8_g8",
    "aqlm_1x16_g8",
)


@dataclass(frozen=True)
class Selection:
    """What was asked for.

    Attributes:
        kinds: of KINDS.
        shapes: names of SHAPES, and BUILTIN.
        formats: of linear layers; None is all that a shape is held in.
        isas: instruction sets.
        threads: numbers of threads.
        quick: parts of large shapes, and only the formats of QUICK_FORMATS.
        effort: of every row.
    """

    kinds: tuple[str, ...]
    shapes: tuple[str, ...]
    formats: tuple[str, ...] | None
    isas: tuple[str, ...]
    threads: tuple[int, ...]
    quick: bool
    effort: Effort

    @property
    def model_kinds(self) -> tuple[str, ...]:
        """The kinds that a model in memory is measured for."""
        return tuple(x for x in self.kinds if x != "load")


def is_ternary(format_name: str) -> bool:
    """Whether weights of this format are -1, 0 or 1 times a scale."""
    return formats.get(format_name).family == "ternary" or format_name.startswith("ternary")


def formats_of(selection: Selection, shape: BenchShape) -> tuple[str, ...]:
    """Formats to measure a shape in: ternary ones for a ternary model, the other packed ones else.

    Named formats are taken as they are, where they are packed as the shape's own.
    """
    ternary = is_ternary(shape.formats.linear)
    if selection.formats is not None:
        return tuple(x for x in selection.formats if is_ternary(x) == ternary)
    found = [x for x in formats.names() if formats.get(x).family != "dense"]
    found = [x for x in found if is_ternary(x) == ternary]
    if selection.quick and not ternary:
        found = [x for x in QUICK_FORMATS if x in found]
    return tuple(found)


def shapes_of(selection: Selection) -> Iterator[BenchShape]:
    """The shapes, once for each of their formats, formats of one shape one after the other."""
    for name in selection.shapes:
        if name == BUILTIN:
            continue
        for format_name in formats_of(selection, SHAPES[name]):
            shape = SHAPES[name].with_linear(format_name)
            yield shape.part(_QUICK_BYTES) if selection.quick else shape


def model_bytes(shape: BenchShape) -> int:
    """Bytes of the shape's random weights in memory."""
    spec, held = shape.spec, shape.formats
    tables = [held.embedding, held.head_scan]
    if not spec.tied_head:
        tables.append(held.head)
    size = (spec.vocab_size, spec.hidden_size)
    return layer_bytes(shape) * spec.num_hidden_layers + sum(
        formats.get(x).nbytes(size) for x in tables if x is not None
    )


class Budget:
    """Shares the time of a run among its steps, and guesses what is left.

    Args:
        costs: of the steps, in any unit.
        seconds: that all of them may take; None is as long as it takes.
    """

    def __init__(
        self,
        costs: Sequence[float],
        seconds: float | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._left = sum(costs)
        self._spent = 0.0
        self._clock = clock
        self._begin = clock()
        self._end = None if seconds is None else self._begin + seconds

    def step_seconds(self, cost: float) -> float | None:
        """Seconds that the next step may take; None is as many as it likes."""
        if self._end is None:
            return None
        return max(0.0, self._end - self._clock()) * cost / max(self._left, cost)

    def done(self, cost: float) -> None:
        """Note that a step is over."""
        self._left -= cost
        self._spent += cost

    def left_s(self) -> float | None:
        """Seconds that the steps to come may take; None before the first one is over."""
        if self._spent <= 0:
            return None
        guess = (self._clock() - self._begin) / self._spent * max(0.0, self._left)
        return guess if self._end is None else min(guess, max(0.0, self._end - self._clock()))


def with_row_seconds(effort: Effort, seconds: float | None, rows: int) -> Effort:
    """The effort of a step that may take so long with so many rows."""
    if seconds is None:
        return effort
    return dataclasses.replace(effort, row_seconds=min(effort.row_seconds, seconds / max(1, rows)))
