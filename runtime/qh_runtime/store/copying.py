"""Copies a local file into the store: hashed on the way, resumed after any end of the process."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from qh_runtime.errors import IntegrityError, StoreError
from qh_runtime.store.download import Reporter, stored_blob
from qh_runtime.store.file_lock import file_lock
from qh_runtime.store.layout import StoreLayout, check_digest
from qh_runtime.store.part import CHUNK_BYTES, Part, check_space, disk_errors, read_all
from qh_runtime.store.transfer import OnTransfer, RemoteFile, StopSignal

__all__ = ["copy_file", "copy_key"]


def copy_file(
    layout: StoreLayout,
    source: Path,
    expected_sha256: str | None,
    on_progress: OnTransfer | None,
    stop: StopSignal,
) -> str | None:
    """Return the SHA-256 of the blob that has a file's bytes then; None if stopped.

    Args:
        expected_sha256: the file's hash where it is known; a blob of it is taken as it is.

    Raises:
        IntegrityError: the bytes have another hash. Facts: path, expected, found.
        StoreError: the source cannot be read or changed meanwhile, or the disk refuses.
            Facts: path, and required_bytes, free_bytes where it is full.
    """
    with disk_errors("read", source, 0), _opened(source) as descriptor:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise StoreError(
                f"{source}: expected a file, found a folder or device",
                hint="name the file itself",
                path=str(source),
            )
        key = check_digest(expected_sha256) if expected_sha256 else _identity(source, before)
        file = RemoteFile(source.name, before.st_size, expected_sha256 or "", "", "")
        report = Reporter(file, on_progress)
        note = "another process is copying this file"
        with file_lock(layout, key, stop, lambda: report("wait", 0, note=note)) as held:
            if not held:
                return None
            if expected_sha256 and stored_blob(layout, expected_sha256, file.size):
                report("done", file.size)
                return expected_sha256
            found = _copy_locked(layout, key, file, source, descriptor, report, stop)
            if found is not None:
                report("done", file.size)
            return found


def _copy_locked(
    layout: StoreLayout,
    key: str,
    file: RemoteFile,
    source: Path,
    descriptor: int,
    report: Reporter,
    stop: StopSignal,
) -> str | None:
    before = os.fstat(descriptor)
    while True:
        part = Part(layout, key, file.size)
        with contextlib.closing(part):
            check_space(part.path.parent, part.missing_bytes)
            found = _copy(descriptor, part, report, stop)
            if found is None:
                return None
            if _version(before) != _version(os.fstat(descriptor)):
                part.discard()
                raise StoreError(
                    f"{source}: expected the same file until it was copied, found that it changed",
                    hint="wait until no other program writes to it, then start again",
                    path=str(source),
                )
            if file.sha256 in ("", found):
                part.finish(found)
                return found
            part.discard()
        # What an earlier run copied may be of other bytes that were to have this hash.
        if not part.resumed:
            raise IntegrityError(
                f"{source}: expected hash {file.sha256}, found {found}",
                hint="the copy is thrown away; get the file again from where it came from",
                path=str(source),
                expected=file.sha256,
                found=found,
            )


def copy_key(source: Path) -> str:
    """Return what names the part of a file whose hash is not known; see `copy_file`.

    Raises:
        StoreError: the source cannot be looked at. Facts: path.
    """
    with disk_errors("read", source, 0):
        return _identity(source, os.stat(source))


def _copy(descriptor: int, part: Part, report: Reporter, stop: StopSignal) -> str | None:
    """Put every chunk that is missing; the hash of all of them, None if stopped."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    for index in range(part.chunk_count):
        if stop.stopped:
            return None
        data = part.read(index, buffer, check=True) if part.has(index) else None
        if data is None:
            data = buffer[: part.chunk_length(index)]
            if read_all(descriptor, data, index * CHUNK_BYTES) < len(data):
                # Became shorter; its version says so.
                break
            part.put(index, data)
        digest.update(data)
        report("fetch", part.done_bytes)
    return digest.hexdigest()


def _version(found: os.stat_result) -> tuple[int, ...]:
    # The change time moves with every write, whatever is done to the modification time.
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)


def _identity(source: Path, found: os.stat_result) -> str:
    """A key for bytes whose hash is not known yet: the same while the file is the same."""
    return hashlib.sha256(repr((os.path.realpath(source), _version(found))).encode()).hexdigest()


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[int]:
    # A pipe in place of a file must not block.
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
