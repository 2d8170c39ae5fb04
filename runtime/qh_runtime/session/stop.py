"""Stop strings across token borders: text that may become one waits until it is decided."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopMatcher"]


class StopMatcher:
    """Holds back the shortest tail that could still grow into a stop string.

    Args:
        stops: strings that end the answer; empty ones are ignored.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Return what can be shown; `matched` is set when a stop string was completed.

        The text before the stop string is returned, the stop string and what follows are dropped.
        Of several that one push completes, the one that begins first wins.
        """
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        buffer = self._held + text
        hits = [(at, stop) for stop in self._stops if (at := buffer.find(stop)) >= 0]
        if hits:
            at, self.matched = min(hits, key=lambda hit: hit[0])
            self._held = ""
            return buffer[:at]
        keep = self._tail(buffer)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep]

    def flush(self) -> str:
        """Return what is held back: the stream ended and it did not become a stop string."""
        held, self._held = self._held, ""
        return "" if self.matched is not None else held

    def _tail(self, buffer: str) -> int:
        """Return the length of the longest end of buffer that begins a stop string."""
        for length in range(min(len(buffer), self._longest - 1), 0, -1):
            end = buffer[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
