"""One connection of a transfer: takes chunks, goes on at the exact byte after an error."""

from __future__ import annotations

import random
import threading
import time

from qh_runtime.errors import DownloadError
from qh_runtime.store.claims import Claims
from qh_runtime.store.http import Body, Channel, Remote
from qh_runtime.store.part import CHUNK_BYTES, Part
from qh_runtime.store.transfer import FetchOptions
from qh_runtime.store.wire import Stopped, TransientError

__all__ = ["Fetcher", "RateLimit", "Transfer", "Tries"]

# An attempt that brought so much needs no pause before the next one.
_PROGRESS_BYTES = 16 << 10
# Failures in a row after which a connection leaves the work to the others.
_LEAVE_AFTER = 3
# Of the mean rate of a connection; one that is slower for the read timeout is opened anew.
_LAGGARD_SHARE = 0.02
# No new connection for so long after one has left.
_REST_S = 30.0
_SCRATCH_BYTES = 64 << 10
# What the cap lets pass without a pause.
_BURST_S = 0.1


class RateLimit:
    """Token bucket over all connections of a transfer."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._rate = bytes_per_s
        self._lock = threading.Lock()
        self._paid_until = time.monotonic()
        # Bytes to read at once: small under a cap, so that its pauses are short.
        self.grain = CHUNK_BYTES
        if bytes_per_s is not None:
            self.grain = int(max(1024, min(CHUNK_BYTES, bytes_per_s * _BURST_S)))

    def spend(self, count: int) -> float:
        """Account for bytes that came; returns the seconds to pause."""
        if self._rate is None:
            return 0.0
        with self._lock:
            now = time.monotonic()
            self._paid_until = max(self._paid_until, now - _BURST_S) + count / self._rate
            return max(0.0, self._paid_until - now)


class Tries:
    """Counts attempts in a row without progress, and says how long to pause before the next."""

    def __init__(self, options: FetchOptions) -> None:
        self._options = options
        self.failures = 0

    def after(self, error: TransientError, new_bytes: int) -> float:
        """Account for an attempt that failed after so many new bytes; returns the pause in s."""
        moved = new_bytes >= _PROGRESS_BYTES and not error.slow
        if moved:
            self.failures = 0
        elif new_bytes == 0 or error.slow:
            self.failures += 1
        pause_s = 0.0
        if not moved and not error.at_once:
            doubled = self._options.retry_delay_s * 2.0 ** min(30, max(0, self.failures - 1))
            # Jitter, so that connections that failed together do not come back together.
            pause_s = min(self._options.max_delay_s, doubled) * random.uniform(0.5, 1.0)
        return max(pause_s, error.retry_after_s)

    @property
    def exhausted(self) -> bool:
        """Whether there were as many as allowed."""
        return self.failures >= self._options.tries


class Transfer:
    """What the connections of one transfer share."""

    def __init__(self, part: Part, remote: Remote, claims: Claims, options: FetchOptions) -> None:
        self.part = part
        self.remote = remote
        self.claims = claims
        self.options = options
        self.limit = RateLimit(options.bytes_per_s)
        # Set to end all threads; the thread that started them waits for `wake`.
        self.halt = threading.Event()
        self.wake = threading.Event()
        self.error: BaseException | None = None
        self.running: set[Fetcher] = set()
        self._started: list[Fetcher] = []
        # One until the server has shown that it sends ranges.
        self.wanted = 1
        self._received_before = 0
        self._started_at = time.monotonic()
        self._lock = threading.Lock()
        self._rest_until = 0.0
        self._hold_until = 0.0
        self._streaming = False

    @property
    def received_bytes(self) -> int:
        """Payload that came over the network, repeats included."""
        with self._lock:
            return self._received_before + sum(x.received_bytes for x in self.running)

    def fetchers(self) -> list[Fetcher]:
        """The connections whose threads have not ended."""
        with self._lock:
            return [x for x in self._started if x.is_alive()]

    def start(self) -> None:
        """Start connections, as many as are wanted and have something to do."""
        with self._lock:
            new = min(self.wanted - len(self.running), self.claims.free)
            fetchers = [Fetcher(self, len(self.running) + x) for x in range(max(0, new))]
            self.running.update(fetchers)
            self._started = [x for x in self._started if x.is_alive()] + fetchers
            for fetcher in fetchers:
                fetcher.start()

    def ended(self, fetcher: Fetcher, error: BaseException | None) -> None:
        """A connection is closed."""
        with self._lock:
            self._received_before += fetcher.received_bytes
            self.running.discard(fetcher)
        if error is not None:
            self.fail(error)
        self.wake.set()

    def fail(self, error: BaseException) -> None:
        """End the transfer with an error; the first one counts."""
        with self._lock:
            self.error = self.error or error
        self.halt.set()
        self.wake.set()

    def opened(self) -> None:
        """The server sends a range: more connections make sense."""
        with self._lock:
            if time.monotonic() >= self._rest_until and self.wanted < self.options.connections:
                self.wanted = self.options.connections
                self.wake.set()

    def may_leave(self, fetcher: Fetcher) -> bool:
        """Whether a failing connection can leave the work to others; the last one cannot."""
        with self._lock:
            others = [x for x in self.running if x is not fetcher and not x.leaving]
            if not others:
                return False
            fetcher.leaving = True
            self.wanted = len(others)
            self._rest_until = time.monotonic() + _REST_S
            return True

    def pace_floor(self) -> float:
        """Bytes/s below which a connection holds up the others so much that a new one is worth it.

        A try that brings bytes counts as progress, so a link that is slow for all fails nothing.
        """
        with self._lock:
            received = self._received_before + sum(x.received_bytes for x in self.running)
            seconds = time.monotonic() - self._started_at
            return _LAGGARD_SHARE * received / max(seconds, 0.1) / max(1, len(self.running))

    def hold(self, seconds: float) -> None:
        """The server asks everyone to wait."""
        with self._lock:
            self._hold_until = max(self._hold_until, time.monotonic() + seconds)

    def held_s(self) -> float:
        """Seconds until the server may be asked again."""
        with self._lock:
            return max(0.0, self._hold_until - time.monotonic())

    def begin_stream(self) -> bool:
        """Let one connection take the whole file from its start; False if another one does."""
        with self._lock:
            if self._streaming:
                return False
            self._streaming = True
            self.wanted = 1
            self._rest_until = float("inf")
            return True

    def end_stream(self) -> None:
        """The stream is over."""
        with self._lock:
            self._streaming = False


class Fetcher(threading.Thread):
    """Fetches free chunks until there are none."""

    def __init__(self, transfer: Transfer, number: int) -> None:
        super().__init__(name=f"fetch {number}", daemon=True)
        self.received_bytes = 0
        self.leaving = False
        # Why it pauses, "" while it does not.
        self.note = ""
        self._transfer = transfer
        self._part = transfer.part
        self._claims = transfer.claims
        self._channel = Channel(transfer.options, transfer.halt.is_set, transfer.pace_floor)
        self._tries = Tries(transfer.options)
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        # Chunks taken and not done; of the first one, `_filled` bytes are in the buffer, the first
        # `_kept` of them on disk already. `_new` counts bytes since the last error.
        self._claim = range(0)
        self._filled = self._kept = self._new = 0

    def abort(self) -> None:
        """End what cannot be ended by `halt` alone."""
        self._channel.abort()

    def run(self) -> None:
        """Fetch until there is nothing free, the transfer halts, or others do it better."""
        error: BaseException | None = None
        try:
            try:
                self._work()
            finally:
                self._channel.close()
                self._give_back()
        except Stopped:
            pass
        except BaseException as caught:  # noqa: BLE001 - handed to the thread that waits for it
            error = caught
        self._transfer.ended(self, error)

    def _work(self) -> None:
        while not self.leaving:
            if not self._claim and not self._take(self._claims.take()):
                return
            try:
                self._pause(self._transfer.held_s())
                self._attempt()
            except TransientError as error:
                pause_s = self._tries.after(error, self._new)
                self._new = 0
                if self._tries.failures >= min(_LEAVE_AFTER, self._transfer.options.tries):
                    if self._transfer.may_leave(self):
                        return
                    if self._tries.exhausted:
                        raise self._given_up(error) from error
                if error.retry_after_s:
                    self._transfer.hold(error.retry_after_s)
                self._pause(pause_s, error.reason)

    def _attempt(self) -> None:
        """Ask for the rest of the claim and receive it."""
        begin = self._claim[0] * CHUNK_BYTES + self._filled
        end = min(self._part.size, self._claim.stop * CHUNK_BYTES)
        with self._transfer.remote.open(self._channel, begin, end) as body:
            if body.whole:
                self._stream(body)
                return
            self._transfer.opened()
            while self._claim:
                self._fill(body)
                self._take(self._claim[1:])

    def _stream(self, body: Body) -> None:
        """Take what is missing from a body that is the whole file."""
        self._give_back()
        if not self._transfer.begin_stream():
            self.leaving = True
            return
        try:
            for index in range(self._part.chunk_count):
                if self._claims.free == 0:
                    return
                if self._claims.take_one(index):
                    self._take(range(index, index + 1))
                    self._skip(body, self._filled)
                    self._fill(body)
                    self._claim = range(0)
                else:
                    self._skip(body, self._part.chunk_length(index))
        except TransientError:
            self._give_back()
            raise
        finally:
            self._transfer.end_stream()

    def _fill(self, body: Body) -> None:
        """Receive the rest of the claim's first chunk and record it."""
        index = self._claim[0]
        length = self._part.chunk_length(index)
        while self._filled < length:
            count = self._receive(body, self._buffer[self._filled : length])
            self._filled += count
            self._new += count
        self._part.put(index, self._buffer[:length], self._kept)
        self._claims.done(index)

    def _skip(self, body: Body, count: int) -> None:
        """Receive bytes that are there already."""
        scratch = memoryview(bytearray(min(count, _SCRATCH_BYTES)))
        while count:
            count -= self._receive(body, scratch[:count])

    def _receive(self, body: Body, view: memoryview) -> int:
        if self._transfer.halt.is_set():
            raise Stopped
        count = body.readinto(view[: self._transfer.limit.grain])
        self.received_bytes += count
        pause_s = self._transfer.limit.spend(count)
        if pause_s:
            self._transfer.halt.wait(pause_s)
        return count

    def _take(self, claim: range) -> bool:
        """Go on with a claim; of its first chunk, what is on disk and sound comes along."""
        self._claim = claim
        self._filled = self._kept = 0
        if claim and self._part.prefix(claim[0]):
            found = self._part.read(claim[0], self._buffer, check=True)
            self._filled = self._kept = len(found) if found is not None else 0
        return bool(claim)

    def _give_back(self) -> None:
        """Record what is in the buffer and let others have the claim."""
        claim, self._claim = self._claim, range(0)
        if not claim:
            return
        if self._filled > self._kept and self._filled < self._part.chunk_length(claim[0]):
            self._part.put(claim[0], self._buffer[: self._filled], self._kept)
        self._claims.give_back(claim)

    def _pause(self, seconds: float, note: str = "") -> None:
        if seconds:
            self.note = note or "the server asks to wait"
            self._transfer.wake.set()
            self._transfer.halt.wait(seconds)
            self.note = ""
        if self._transfer.halt.is_set():
            raise Stopped

    def _given_up(self, error: TransientError) -> DownloadError:
        return self._transfer.remote.given_up(error, self._tries.failures)
