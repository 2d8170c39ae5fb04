"""WeightsWatch: asks in time whether the files under a running model still are what was loaded."""

from __future__ import annotations

import time
from collections.abc import Callable

from qh_kernels.mapped_files import lost_files

__all__ = ["WeightsWatch"]

# Looking at the files takes microseconds for each; text of this much time at most is built on
# weights that somebody writes over. A file that is cut short is noticed at once.
_LOOK_S = 0.25


class WeightsWatch:
    """Calls a check rarely, except where a mapped file has lost a part.

    Args:
        check: raises where a file has changed.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._lost = 0
        self._next = 0.0

    def now(self) -> None:
        """Check. Whatever the check raises comes out of here."""
        lost = lost_files()
        self._check()
        self._lost, self._next = lost, time.perf_counter() + _LOOK_S

    def after_step(self) -> None:
        """Check where it is time to, before what the decoder computed is used."""
        if lost_files() != self._lost or time.perf_counter() >= self._next:
            self.now()
