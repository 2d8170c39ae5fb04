"""Fetches one file into the store: in parallel, resumed at the exact byte, checked at the end.

`fetch_file` walks this line: lock, part (what is there already), room on the disk, connections
(`fetcher.py`) and hash (`digest.py`) side by side, blob. `fetch_span` reads a piece of a file that
is not in the store, such as the header of its weights.

What a transfer has in memory does not grow with the file: 1 MiB for each connection and one for the
hash. All its threads have ended when these functions return.
"""

from __future__ import annotations

import contextlib
import stat
import time

from qh_runtime.errors import DownloadError, StoreError
from qh_runtime.store.claims import Claims
from qh_runtime.store.digest import FileDigest, Follower
from qh_runtime.store.fetcher import Transfer, Tries
from qh_runtime.store.file_lock import file_lock
from qh_runtime.store.http import Body, Channel, Remote
from qh_runtime.store.layout import StoreLayout, check_digest
from qh_runtime.store.part import Part, check_space
from qh_runtime.store.transfer import (
    FetchOptions,
    OnTransfer,
    RemoteFile,
    StopSignal,
    TransferProgress,
    TransferState,
)
from qh_runtime.store.wire import Stopped, TransientError

__all__ = ["MAX_SPAN_BYTES", "Reporter", "fetch_file", "fetch_locked", "fetch_span", "stored_blob"]

MAX_SPAN_BYTES = 32 << 20
_REPORT_S = 0.1


class Reporter:
    """Tells a caller about ten times a second how far one file is."""

    def __init__(self, file: RemoteFile, on_progress: OnTransfer | None) -> None:
        self._file = file
        self._on_progress = on_progress
        self._next = 0.0
        self._last_state = ""
        self.fetched_before = 0

    def __call__(
        self, state: TransferState, done_bytes: int, fetched_bytes: int = 0, note: str = ""
    ) -> None:
        """Report, unless the last report is too young and the state is the same."""
        now = time.monotonic()
        if self._on_progress is None or (state == self._last_state and now < self._next):
            return
        self._next = now + _REPORT_S
        self._last_state = state
        fetched = self.fetched_before + fetched_bytes
        self._on_progress(
            TransferProgress(self._file.path, state, done_bytes, self._file.size, fetched, note)
        )


def fetch_file(
    layout: StoreLayout,
    file: RemoteFile,
    options: FetchOptions,
    on_progress: OnTransfer | None,
    stop: StopSignal,
) -> str | None:
    """Return the SHA-256 of the file's blob, which is in the store then; None if stopped.

    What arrived stays when it is stopped, fails or is killed, and the next call goes on from there.
    While another process fetches the same file this one waits for it.

    Raises:
        DownloadError: the server or the connection. Facts: file, url, status.
        IntegrityError: what came is not the file; it is thrown away. Facts: path, expected, found.
        StoreError: the disk. Facts: path, and required_bytes, free_bytes where it is full.
    """
    _check_file(file)
    report = Reporter(file, on_progress)
    if _is_stored(layout, file) and not _left_over(layout, file.key):
        report("done", file.size)
        return file.sha256
    note = "another process is fetching this file"
    with file_lock(layout, file.key, stop, lambda: report("wait", 0, note=note)) as held:
        if not held:
            return None
        if _is_stored(layout, file):
            # A process was killed between giving the blob its name and tidying up.
            if _left_over(layout, file.key):
                Part(layout, file.key, file.size).discard()
            report("done", file.size)
            return file.sha256
        return fetch_locked(layout, file, options, report, stop)


def fetch_locked(
    layout: StoreLayout,
    file: RemoteFile,
    options: FetchOptions,
    report: Reporter,
    stop: StopSignal,
) -> str | None:
    """Fetch what is missing of a part whose lock is held, and make it the blob; as `fetch_file`."""
    restarted = False
    while True:
        part = Part(layout, file.key, file.size)
        with contextlib.closing(part):
            check_space(part.path.parent, part.missing_bytes)
            remote = Remote(file, options)
            digest = FileDigest(file)
            if not _transfer(part, remote, digest, options, report, stop):
                return None
            if digest.found == digest.expected:
                part.finish(digest.sha256)
                report("done", file.size)
                return digest.sha256
            part.discard()
        # Bytes of an earlier run, or of another version on the server, may be among these.
        if restarted or not (part.resumed or remote.etag_changes):
            raise digest.error()
        restarted = True


def _transfer(
    part: Part,
    remote: Remote,
    digest: FileDigest,
    options: FetchOptions,
    report: Reporter,
    stop: StopSignal,
) -> bool:
    """Fetch and hash until every chunk is there; False if stopped."""
    claims = Claims(part, options.connections)
    transfer = Transfer(part, remote, claims, options)

    def hash_ended(error: BaseException | None) -> None:
        if error is not None:
            transfer.fail(error)
        transfer.wake.set()

    follower = Follower(part, claims, digest, transfer.halt.is_set, hash_ended)
    follower.start()
    try:
        while follower.is_alive() and transfer.error is None and not stop.stopped:
            transfer.start()
            _report_on(transfer, report)
            transfer.wake.wait(_REPORT_S)
            transfer.wake.clear()
    finally:
        transfer.halt.set()
        for fetcher in transfer.fetchers():
            fetcher.abort()
            fetcher.join()
        follower.join()
        report.fetched_before += transfer.received_bytes
    if transfer.error is not None and not follower.complete:
        raise transfer.error
    return follower.complete


def _report_on(transfer: Transfer, report: Reporter) -> None:
    running = transfer.fetchers()
    notes = [x.note for x in running]
    state: TransferState = "fetch"
    if notes and all(notes):
        state = "retry"
    elif not running and not transfer.claims.free:
        state = "verify"
    note = notes[0] if state == "retry" else ""
    report(state, transfer.part.done_bytes, transfer.received_bytes, note)


def fetch_span(
    file: RemoteFile,
    begin: int,
    end: int,
    options: FetchOptions,
    stop: StopSignal | None = None,
) -> bytes | None:
    """Return bytes [begin, end) of a file, at most MAX_SPAN_BYTES; None if stopped.

    They are not checked: only the whole file has a hash.

    Raises:
        DownloadError: the server or the connection. Facts: file, url, status.
        StoreError: there is no such span. Facts: file.
    """
    _check_file(file)
    if not 0 <= begin <= end <= file.size or end - begin > MAX_SPAN_BYTES:
        raise StoreError(
            f"{file.path}: bytes {begin} to {end}: expected at most {MAX_SPAN_BYTES} of the "
            f"{file.size} there are",
            hint="the file's header is damaged",
            file=file.path,
        )
    buffer = memoryview(bytearray(end - begin))
    signal = stop or StopSignal()
    remote = Remote(file, options)
    channel = Channel(options, lambda: signal.stopped)
    tries = Tries(options)
    filled = 0
    with contextlib.closing(channel):
        while filled < len(buffer):
            before = filled
            try:
                with remote.open(channel, begin + filled, end) as body:
                    if body.whole:
                        _skip(remote, body, begin + filled)
                    while filled < len(buffer):
                        filled += body.readinto(buffer[filled:])
            except Stopped:
                return None
            except TransientError as error:
                # `filled` counts what came before the error, in the loop or in an earlier attempt.
                pause_s = tries.after(error, filled - before)
                if tries.exhausted:
                    raise remote.given_up(error, tries.failures) from error
                if signal.wait(pause_s):
                    return None
    return bytes(buffer)


def _skip(remote: Remote, body: Body, count: int) -> None:
    """Read past the first bytes of a file that the server sends as a whole."""
    if count > MAX_SPAN_BYTES:
        raise remote.refused_span()
    scratch = memoryview(bytearray(min(count, 1 << 16)))
    while count:
        count -= body.readinto(scratch[:count])


def stored_blob(layout: StoreLayout, sha256: str, size: int) -> bool:
    """Whether a blob is there with its size; says nothing about its bytes."""
    try:
        found = layout.blob(sha256).lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _is_stored(layout: StoreLayout, file: RemoteFile) -> bool:
    return bool(file.sha256) and stored_blob(layout, file.sha256, file.size)


def _left_over(layout: StoreLayout, key: str) -> bool:
    return layout.part(key).exists() or layout.journal(key).exists()


def _check_file(file: RemoteFile) -> None:
    """What the metadata said must be complete before anything is asked for."""
    if file.sha256:
        check_digest(file.sha256)
    if file.size < 0 or not (file.sha256 or file.git_sha1):
        raise DownloadError(
            f"{file.path}: expected a size and a hash, found {file.size} bytes and no hash",
            hint="the hub's list of files is incomplete; try again later",
            file=file.path,
            url="",
            status=None,
        )
