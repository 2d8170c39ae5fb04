"""Puts a damaged blob right: what its CRCs show to be sound is kept, the rest is fetched."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Iterator

from qh_runtime.store.download import Reporter, fetch_locked
from qh_runtime.store.file_lock import file_lock
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.part import (
    CHUNK_BYTES,
    Part,
    check_space,
    chunk_checks,
    disk_errors,
    read_all,
    write_checks,
)
from qh_runtime.store.transfer import FetchOptions, OnTransfer, RemoteFile, StopSignal

__all__ = ["repair_blob"]


def repair_blob(
    layout: StoreLayout,
    file: RemoteFile,
    sha256: str,
    options: FetchOptions,
    on_progress: OnTransfer | None,
    stop: StopSignal,
) -> str | None:
    """Return the SHA-256 of a file whose blob is sound then; None if stopped.

    A blob without damage is left as it is. A damaged one stays until the whole new one takes its
    place; an interrupted repair goes on where it was.

    Args:
        file: where its bytes are. sha256: the blob's name, which `file` may not know.

    Raises:
        DownloadError, IntegrityError, StoreError: as `fetch_file`.
    """
    report = Reporter(file, on_progress)
    note = "another process is fetching this file"
    with file_lock(layout, file.key, stop, lambda: report("wait", 0, note=note)) as held:
        if not held:
            return None
        sound = _sound_chunks(layout, file.size, sha256, report, stop)
        if stop.stopped:
            return None
        if sound is None:
            report("done", file.size)
            return sha256
        if not _keep(layout, file, sha256, sound, report, stop):
            return None
        return fetch_locked(layout, file, options, report, stop)


def _sound_chunks(
    layout: StoreLayout, size: int, sha256: str, report: Reporter, stop: StopSignal
) -> dict[int, int] | None:
    """Chunks worth keeping and their CRC-32; None if there is no damage at all."""
    checks = chunk_checks(layout, sha256, size)
    digest = hashlib.sha256()
    crcs: dict[int, int] = {}
    done = 0
    exact = False
    with _opened(layout, sha256) as descriptor:
        if descriptor is not None:
            exact = os.fstat(descriptor).st_size == size
        for index, data in _chunks(descriptor, size):
            if stop.stopped:
                return {}
            crcs[index] = zlib.crc32(data)
            digest.update(data)
            done += len(data)
            report("verify", done)
    whole = done == size and digest.hexdigest() == sha256
    if whole and not exact:
        # Something was appended; all that belongs to it is sound.
        return crcs
    if whole:
        if checks is None:
            with disk_errors("write", layout.blob_checks(sha256), 4 * len(crcs)):
                write_checks(layout, sha256, size, list(crcs.values()))
        return None
    sound = {x: crc for x, crc in crcs.items() if checks is not None and checks[x] == crc}
    # CRCs that see no damage where the hash does say nothing about any chunk.
    return sound if checks is not None and len(sound) < len(checks) else {}


def _keep(
    layout: StoreLayout,
    file: RemoteFile,
    sha256: str,
    sound: dict[int, int],
    report: Reporter,
    stop: StopSignal,
) -> bool:
    """Copy sound chunks of the blob into its part; False if stopped."""
    if not sound:
        return True
    part = Part(layout, file.key, file.size)
    with contextlib.closing(part):
        check_space(part.path.parent, part.missing_bytes)
        with _opened(layout, sha256) as descriptor:
            for index, data in _chunks(descriptor, file.size):
                if stop.stopped:
                    return False
                if not part.has(index) and sound.get(index) == zlib.crc32(data):
                    part.put(index, data)
                    report("verify", part.done_bytes)
    return True


@contextlib.contextmanager
def _opened(layout: StoreLayout, sha256: str) -> Iterator[int | None]:
    """The blob's descriptor, None where it cannot be read at all."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(layout.blob(sha256), flags)
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _chunks(descriptor: int | None, size: int) -> Iterator[tuple[int, memoryview]]:
    """(index, bytes) of the chunks that can be read in full; the buffer is used again."""
    if descriptor is None:
        return
    buffer = memoryview(bytearray(CHUNK_BYTES))
    for index in range(-(-size // CHUNK_BYTES)):
        view = buffer[: min(CHUNK_BYTES, size - index * CHUNK_BYTES)]
        try:
            found = read_all(descriptor, view, index * CHUNK_BYTES)
        except OSError:
            # A sector the disk cannot read is damage like any other.
            continue
        if found == len(view):
            yield index, view
