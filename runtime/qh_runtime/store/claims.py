"""Claims: which chunks of a part are free, taken by a connection, or there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from qh_runtime.store.part import Part

__all__ = ["Claims"]

_FREE, _TAKEN, _DONE = b"\0\1\2"
# Ranges asked for at once, in MiB. Long enough that a round trip between two of them costs little,
# short enough that the hash, which goes from the start, finds its bytes in memory.
_MIN_RUN, _MAX_RUN = 4, 64
_WAIT_S = 0.1


class Claims:
    """The chunks of a part; every method may be called by any thread.

    Args:
        part: what it has already is done.
        connections: how many will take from here.
    """

    def __init__(self, part: Part, connections: int) -> None:
        self._part = part
        self._connections = connections
        self._state = bytearray(
            _DONE if part.has(index) else _FREE for index in range(part.chunk_count)
        )
        self._free = self._state.count(_FREE)
        self._changed = threading.Condition()

    @property
    def free(self) -> int:
        """Chunks that nobody has taken."""
        return self._free

    def take(self) -> range:
        """Take the first free chunks in a row, fewer towards the end; empty if there are none."""
        with self._changed:
            first = self._state.find(_FREE)
            if first < 0:
                return range(0)
            limit = len(self._state)
            if self._connections > 1:
                share = self._free // (2 * self._connections)
                limit = min(limit, first + max(_MIN_RUN, min(share, _MAX_RUN)))
            last = first + 1
            # A chunk of which there is a beginning comes first in its run: that much is not asked
            # for again.
            while last < limit and self._state[last] == _FREE and not self._part.prefix(last):
                last += 1
            self._set(range(first, last), _TAKEN)
            return range(first, last)

    def take_one(self, index: int) -> bool:
        """Take one chunk if it is free."""
        with self._changed:
            if self._state[index] != _FREE:
                return False
            self._set((index,), _TAKEN)
            return True

    def done(self, index: int) -> None:
        """A chunk that was taken is there."""
        with self._changed:
            self._set((index,), _DONE)
            self._changed.notify_all()

    def give_back(self, indices: Iterable[int]) -> None:
        """Chunks that were taken, or turned out damaged, are free again."""
        with self._changed:
            self._set(indices, _FREE)

    def wait_for(self, index: int, halted: Callable[[], bool]) -> bool:
        """Return True when a chunk is there, False when halted."""
        with self._changed:
            while self._state[index] != _DONE:
                if halted():
                    return False
                self._changed.wait(_WAIT_S)
        return not halted()

    def _set(self, indices: Iterable[int], state: int) -> None:
        for index in indices:
            self._free += (state == _FREE) - (self._state[index] == _FREE)
            self._state[index] = state
