"""Runs an operation many times and kills it (SIGKILL) before each change that it makes to files.

For processes of their own that have one thread: each run is a fork.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["kill_at_points"]

_CHANGES = frozenset(
    {"os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.mkdir", "os.truncate"}
)
_MOST_POINTS = 10_000


def kill_at_points(
    prepare: Callable[[], None],
    operation: Callable[[], object],
    check: Callable[[], None],
    most: int,
) -> int:
    """Kill at every point, or at so many drawn at random; returns how many kills there were.

    Args:
        prepare: puts everything into its first state, before each run.
        operation: what is killed.
        check: called after each run, in a process that outlives it.
    """
    points = _count_points(prepare, operation)
    check()
    chosen = list(range(1, points + 1))
    if points > most:
        chosen = sorted(random.Random(20261123).sample(chosen, most))
    for point in chosen:
        prepare()
        status = _run(operation, point)
        if not os.WIFSIGNALED(status):
            raise AssertionError(f"point {point} of {points}: the operation ended by itself")
        check()
    return len(chosen)


def _count_points(prepare: Callable[[], None], operation: Callable[[], object]) -> int:
    prepare()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        counter = _Counter(_MOST_POINTS)
        sys.addaudithook(counter)
        operation()
        os.write(writer, str(counter.count).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return int(text)


def _run(operation: Callable[[], object], point: int) -> int:
    child = os.fork()
    if child == 0:
        sys.addaudithook(_Counter(point))
        operation()
        os._exit(0)
    return os.waitpid(child, 0)[1]


class _Counter:
    """An audit hook that kills its process before the nth change."""

    def __init__(self, last: int) -> None:
        self.count = 0
        self._last = last

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and _writes(arguments)):
            self.count += 1
            if self.count >= self._last:
                os.kill(os.getpid(), signal.SIGKILL)


def _writes(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
