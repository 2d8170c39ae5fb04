"""Runs an operation many times and disturbs it at each change that it makes to files.

It is killed (SIGKILL) before the change, or the change is refused as a full disk does. For
processes of their own that have one thread: each run is a fork.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, Literal

from qh_runtime.errors import QhError

__all__ = ["How", "disturb_at_points", "read_plan"]

How = Literal["kill", "refuse"]

_CHANGES = frozenset(
    {"os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.mkdir", "os.truncate"}
)
_MOST_POINTS = 10_000


def read_plan(hows: str, most: str) -> list[tuple[How, int]]:
    """Of the words "kill,refuse" and "20,10": how, and at up to how many points, one after another.

    One process for all of them, because most of its time goes into starting.
    """
    pairs = zip(hows.split(","), most.split(","), strict=True)
    return [("kill" if how == "kill" else "refuse", int(count)) for how, count in pairs]


def disturb_at_points(
    how: How,
    prepare: Callable[[], None],
    operation: Callable[[], object],
    check: Callable[[], None],
    most: int,
) -> int:
    """Disturb at every point, or at so many drawn at random; returns how many there were.

    An operation whose change was refused must end with a QhError, or without any error.

    Args:
        prepare: puts everything into its first state, before each run.
        operation: what is disturbed.
        check: called after each run, in a process that outlives it.
    """
    points = _count_points(prepare, operation)
    check()
    chosen = list(range(1, points + 1))
    if points > most:
        chosen = sorted(random.Random(20261123).sample(chosen, most))
    for point in chosen:
        prepare()
        status = _run(operation, point, how)
        ended = os.WIFSIGNALED(status) if how == "kill" else os.waitstatus_to_exitcode(status) == 0
        if not ended:
            raise AssertionError(f"{how} at point {point} of {points}: status {status}")
        check()
    return len(chosen)


def _count_points(prepare: Callable[[], None], operation: Callable[[], object]) -> int:
    prepare()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        counter = _Counter(_MOST_POINTS, "kill")
        sys.addaudithook(counter)
        operation()
        os.write(writer, str(counter.count).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return int(text)


def _run(operation: Callable[[], object], point: int, how: How) -> int:
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    sys.addaudithook(_Counter(point, how))
    code = 0
    try:
        operation()
    except QhError:
        pass
    except BaseException:  # noqa: BLE001 - the process ends here
        traceback.print_exc()
        code = 1
    os._exit(code)


class _Counter:
    """An audit hook that kills its process before the nth change, or refuses that one change."""

    def __init__(self, last: int, how: How) -> None:
        self.count = 0
        self._last = last
        self._how = how

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and _writes(arguments)):
            self.count += 1
            if self._how == "refuse" and self.count == self._last:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._how == "kill" and self.count >= self._last:
                os.kill(os.getpid(), signal.SIGKILL)


def _writes(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
