"""Mapped weight files, and what becomes of a process when one is cut short while it is in use.

Reading behind the end of a mapped file would end the process (SIGBUS). A watched file reads as
zeros there instead, and says so; whoever computed with it must ask before the result is used.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

__all__ = ["WatchedFile", "lost_files"]


class WatchedFile(mmap.mmap):
    """A file mapped read-only: `WatchedFile(descriptor, 0, access=mmap.ACCESS_READ)`.

    `watch` comes before the first read. Views of it keep it alive; where the last one goes, so does
    the watch.
    """

    _number: int = -1
    # Kept from the start: at the end of a process nothing can be imported any more.
    _unwatch: Callable[[int], None]

    def watch(self) -> None:
        """From here on the process outlives this file's being cut short."""
        if self._number >= 0:
            return
        import numpy as np

        from qh_kernels import _native

        begin = np.frombuffer(self, np.uint8).__array_interface__["data"][0]
        self._unwatch = _native.unwatch_mapping
        self._number = _native.watch_mapping(begin, len(self))

    @property
    def is_lost(self) -> bool:
        """Whether a part was read that the file did not have any more: zeros stand in its place."""
        if self._number < 0:
            return False
        from qh_kernels import _native

        return _native.mapping_is_lost(self._number)

    def __del__(self) -> None:
        # Before the memory is unmapped: its addresses may soon be another file's.
        if self._number >= 0:
            self._unwatch(self._number)


def lost_files() -> int:
    """How often, in the life of this process, zeros were put in place of a watched file.

    Cheap enough to ask after every token; which file it was, `WatchedFile.is_lost` knows.
    """
    from qh_kernels import _native

    return _native.lost_mappings()
