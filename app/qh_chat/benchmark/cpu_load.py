"""CPU time that others used during a measurement, which is what makes one doubtful.

Source: proc(5), /proc/stat and /proc/<pid>/stat; both count in ticks of 10 ms on most systems.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CpuLoad", "CpuWatch"]


@dataclass(frozen=True)
class CpuLoad:
    """Mean number of CPUs in use.

    Attributes:
        foreign: by programs that are not ours; None where the system does not tell.
        steal: taken by the host of a virtual machine while something here wanted to run.
    """

    foreign: float | None
    steal: float | None


class CpuWatch:
    """From its making on: `load` says what others used until then.

    Args:
        children: process ids that are ours besides this process, and run all the time.
        proc: where the system's files are.
        own_s: CPU seconds of this process so far; for tests.
    """

    def __init__(
        self,
        children: Iterable[int] = (),
        proc: Path = Path("/proc"),
        clock: Callable[[], float] = time.perf_counter,
        own_s: Callable[[], float] | None = None,
    ) -> None:
        self._children = tuple(children)
        self._proc = proc
        self._clock = clock
        self._own_s = _process_s if own_s is None else own_s
        self._begin = self._read()

    def load(self) -> CpuLoad:
        """The load since it was made."""
        elapsed, busy, steal, own = (
            None if old is None or new is None else new - old
            for old, new in zip(self._begin, self._read(), strict=True)
        )
        if elapsed is None or elapsed <= 0:
            return CpuLoad(None, None)
        # Ticks are coarse: what is ours may be counted a tick earlier than what is everybody's.
        foreign = None if busy is None or own is None else max(0.0, busy - own) / elapsed
        return CpuLoad(foreign, None if steal is None else steal / elapsed)

    def _read(self) -> tuple[float | None, float | None, float | None, float | None]:
        """Seconds: (wall, busy of all, stolen, ours)."""
        busy, steal = _system(self._proc)
        own: float | None = self._own_s()
        for child in self._children:
            used = _ticks_of(self._proc / str(child) / "stat")
            own = None if own is None or used is None else own + used
        return self._clock(), busy, steal, own


def _process_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _tick_s() -> float:
    return 1.0 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01


def _system(proc: Path) -> tuple[float | None, float | None]:
    """(busy, stolen) seconds of all CPUs since boot."""
    try:
        words = (proc / "stat").read_text("ascii").split("\n", 1)[0].split()
        if words[0] != "cpu":
            return None, None
        user, nice, system, _idle, _iowait, irq, softirq, steal = (int(x) for x in words[1:9])
    except (OSError, ValueError, IndexError):
        return None, None
    tick = _tick_s()
    # guest times are in user and nice already.
    return (user + nice + system + irq + softirq) * tick, steal * tick


def _ticks_of(stat: Path) -> float | None:
    """CPU seconds of a process; None when it is gone."""
    try:
        # The name in brackets may hold anything, spaces and brackets too.
        words = stat.read_text("utf-8", "replace").rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) * _tick_s()
    except (OSError, ValueError, IndexError):
        return None
