"""How fast bytes arrive, over the last few seconds, and how long the rest will take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

__all__ = ["RateMeter"]

_WINDOW_S = 5.0
# Before this much time has passed a rate would only be noise.
_SHORTEST_S = 0.5


class RateMeter:
    """Fed with growing byte counts; tells bytes per second over the last five seconds.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # (time, bytes so far), oldest first; one sample before the window is kept as its begin.
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])

    def add(self, total_bytes: int) -> None:
        """Say how many bytes have arrived since the meter was made."""
        now = self._clock()
        self._samples.append((now, total_bytes))
        while len(self._samples) > 2 and self._samples[1][0] <= now - _WINDOW_S:
            self._samples.popleft()

    @property
    def bytes_per_s(self) -> float | None:
        """None until there is enough to tell."""
        (begin, first), (_, last) = self._samples[0], self._samples[-1]
        # A stall counts: the time since the last byte is part of the window.
        passed = self._clock() - begin
        return (last - first) / passed if passed >= _SHORTEST_S else None

    def left_s(self, missing_bytes: int) -> float | None:
        """Seconds until so many bytes more have arrived; None where that cannot be told."""
        rate = self.bytes_per_s
        if missing_bytes <= 0:
            return 0.0
        return missing_bytes / rate if rate else None
