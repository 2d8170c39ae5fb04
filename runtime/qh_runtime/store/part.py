"""Part: a file of the store that is not whole yet, and the journal of what is there already.

Bytes are written at their place in the file, chunks of 1 MiB in any order. When a chunk is there,
one record is appended to the journal. A chunk that is recorded but does not have its CRC-32 counts
as missing when it is read again, so neither a killed process nor a power cut can make bytes count
that never reached the disk, and the journal need not be trusted.

    journal   header | record | record | ...                       integers little-endian
    header    magic 8s | chunk_bytes u32 | 0 u32 | size u64 | key 64s | CRC-32 of the 88 bytes u32
    record    chunk u32 | length u32 | CRC-32 of its first `length` bytes u32 | check u32

`length` is less than the chunk's where a transfer stopped inside it. `check` is the CRC-32 of the
12 bytes before it, begun with the header's, so that a record belongs to one journal; a torn or
damaged one is ignored. The last record of a chunk counts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from qh_runtime.errors import StoreError
from qh_runtime.store.layout import StoreLayout

__all__ = [
    "CHUNK_BYTES",
    "SYNC_BYTES",
    "Part",
    "check_space",
    "chunk_checks",
    "disk_errors",
    "read_all",
    "write_checks",
]

CHUNK_BYTES = 1 << 20
# New bytes after which data and journal are made durable: what a power cut may cost.
SYNC_BYTES = 8 << 20
# Free space asked for beyond the bytes themselves: file system overhead, other programs.
SPARE_SHARE = 0.05

_HEADER = struct.Struct("<8sIIQ64sI")
_RECORD = struct.Struct("<IIII")
_MAGIC = b"QHPART01"
_CHECKS = struct.Struct("<8sIIQ")
_CHECKS_MAGIC = b"QHCRCS01"
_NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}

# macOS has no fdatasync.
_sync_data = getattr(os, "fdatasync", os.fsync)


class Part:
    """One unfinished file; `put` and `read` may be called by several threads at once.

    Opening continues what an earlier process left under the same key and size, or starts anew.

    Args:
        layout: where parts, journals and blobs lie.
        key: names part and journal. size: bytes of the whole file.

    Raises:
        StoreError: the disk refuses. Facts: path, and free_bytes, required_bytes where it is full.
    """

    def __init__(self, layout: StoreLayout, key: str, size: int) -> None:
        self._layout = layout
        self.key = key
        self.size = size
        self.chunk_count = -(-size // CHUNK_BYTES)
        self.path = layout.part(key)
        self._journal_path = layout.journal(key)
        self._lengths = array("I", bytes(4 * self.chunk_count))
        self._crcs = array("I", bytes(4 * self.chunk_count))
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._done_bytes = 0
        self._unsynced = 0
        self._broken = False
        self._file = self._journal = -1
        self._seed = self._end = self._synced_end = 0
        with disk_errors("open", self.path, size):
            try:
                self._open()
            except BaseException:
                self.close()
                raise
        # Whether bytes of an earlier run are part of this one.
        self.resumed = self._done_bytes > 0

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _open_part(self.path)
        if not self._read_journal():
            self._lengths = array("I", bytes(4 * self.chunk_count))
            self._done_bytes = 0
            os.ftruncate(self._file, 0)
            self._new_journal()
        # Sparse, so it costs nothing, and a file size limit says so before anything is fetched.
        if os.fstat(self._file).st_size != self.size:
            os.ftruncate(self._file, self.size)

    @property
    def done_bytes(self) -> int:
        """Bytes that are recorded; those of an earlier run may still turn out damaged."""
        return self._done_bytes

    @property
    def missing_bytes(self) -> int:
        """Bytes that are not recorded."""
        return self.size - self._done_bytes

    def chunk_length(self, index: int) -> int:
        """Bytes of a chunk; the last one is shorter."""
        return min(CHUNK_BYTES, self.size - index * CHUNK_BYTES)

    def has(self, index: int) -> bool:
        """Whether a chunk is recorded as complete."""
        return self._lengths[index] == self.chunk_length(index)

    def prefix(self, index: int) -> int:
        """How many bytes of a chunk are recorded."""
        return self._lengths[index]

    def put(self, index: int, data: memoryview, start: int = 0) -> None:
        """Write and record the first len(data) bytes of a chunk; those before `start` are there.

        Raises:
            StoreError: the disk refuses; what was recorded before stays.
        """
        crc = zlib.crc32(data)
        with disk_errors("write", self.path, self.missing_bytes):
            _write_all(self._file, data[start:], index * CHUNK_BYTES + start)
            body = struct.pack("<III", index, len(data), crc)
            record = body + struct.pack("<I", zlib.crc32(body, self._seed))
            with self._lock:
                if self._broken:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                # At a place of our own, not appended: a record that a full disk cut short is
                # overwritten by the next one instead of shifting all that follow.
                _write_all(self._journal, memoryview(record), self._end)
                self._end += _RECORD.size
                self._set(index, len(data), crc)
                self._unsynced += len(data) - start
                due = self._unsynced >= SYNC_BYTES
                if due:
                    self._unsynced = 0
        if due:
            self.sync()

    def read(self, index: int, buffer: memoryview, *, check: bool) -> memoryview | None:
        """Return the recorded bytes of a chunk, read into buffer; None if there are none.

        Args:
            check: compare with the recorded CRC-32. Bytes that differ are forgotten: None.
        """
        length = self._lengths[index]
        view = buffer[:length]
        with disk_errors("read", self.path, self.missing_bytes):
            found = read_all(self._file, view, index * CHUNK_BYTES)
        if length and (found < length or (check and zlib.crc32(view) != self._crcs[index])):
            with self._lock:
                self._set(index, 0, 0)
            return None
        return view if length else None

    def sync(self) -> None:
        """Make everything recorded so far durable.

        Raises:
            StoreError: the disk refuses. What was recorded since the last time is forgotten and no
                more is taken: after a failed sync the system may show bytes the disk never got.
        """
        with self._sync_lock, disk_errors("save", self.path, self.missing_bytes):
            end = self._end
            try:
                _sync_data(self._file)
                _sync_data(self._journal)
            except OSError:
                self._forget_unsynced()
                raise
            self._synced_end = end

    def finish(self, sha256: str) -> Path:
        """Turn the part into the blob of this hash, which the caller has computed from its bytes.

        Returns its path. It is durable then; a kill at any moment leaves the part or the blob.

        Raises:
            StoreError: the disk refuses; the part stays.
        """
        blob = self._layout.blob(sha256)
        with self._sync_lock, disk_errors("save", blob, self.missing_bytes):
            blob.parent.mkdir(parents=True, exist_ok=True)
            os.fchmod(self._file, 0o444)
            try:
                os.fsync(self._file)
            except OSError:
                self._forget_unsynced()
                raise
            write_checks(self._layout, sha256, self.size, self._crcs)
            os.rename(self.path, blob)
            _sync_folder(blob.parent)
            self._journal_path.unlink(missing_ok=True)
        self.close()
        return blob

    def discard(self) -> None:
        """Remove the part and its journal."""
        self.close()
        with disk_errors("remove", self.path, 0):
            # The journal last: a part without one counts for nothing, but `prune` finds both.
            self.path.unlink(missing_ok=True)
            self._journal_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files and keep them."""
        for descriptor in (self._file, self._journal):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._journal = -1

    def _forget_unsynced(self) -> None:
        with self._lock:
            self._broken = True
            try:
                os.ftruncate(self._journal, self._synced_end)
            except OSError:
                self._journal_path.unlink(missing_ok=True)

    def _set(self, index: int, length: int, crc: int) -> None:
        self._done_bytes += length - self._lengths[index]
        self._lengths[index] = length
        self._crcs[index] = crc

    def _header(self) -> bytes:
        body = _HEADER.pack(_MAGIC, CHUNK_BYTES, 0, self.size, self.key.encode(), 0)[:-4]
        return body + struct.pack("<I", zlib.crc32(body))

    def _new_journal(self) -> None:
        header = self._header()
        _write_durable(self._journal_path, header)
        self._journal = os.open(self._journal_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._seed = zlib.crc32(header)
        self._end = self._synced_end = _HEADER.size

    def _read_journal(self) -> bool:
        """Take over the records of an earlier run; False if there is no journal for this file."""
        try:
            self._journal = os.open(self._journal_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        with os.fdopen(os.dup(self._journal), "rb") as file:
            data = file.read()
        header = self._header()
        if data[: len(header)] != header:
            os.close(self._journal)
            self._journal = -1
            return False
        self._seed = zlib.crc32(header)
        count = (len(data) - len(header)) // _RECORD.size
        self._end = self._synced_end = len(header) + count * _RECORD.size
        for index, length, crc, check in _RECORD.iter_unpack(data[len(header) : self._end]):
            sound = check == zlib.crc32(struct.pack("<III", index, length, crc), self._seed)
            if sound and index < self.chunk_count and length <= self.chunk_length(index):
                self._set(index, length, crc)
        return True


def write_checks(layout: StoreLayout, sha256: str, size: int, crcs: Sequence[int]) -> None:
    """Write the CRC-32 of every MiB of a blob beside it.

        magic 8s | chunk_bytes u32 | count u32 | size u64 | CRC-32 u32 * count | CRC-32 of all u32

    Raises:
        OSError: the disk refuses.
    """
    body = _CHECKS.pack(_CHECKS_MAGIC, CHUNK_BYTES, len(crcs), size)
    body += struct.pack(f"<{len(crcs)}I", *crcs)
    _write_durable(layout.blob_checks(sha256), body + struct.pack("<I", zlib.crc32(body)))


def chunk_checks(layout: StoreLayout, sha256: str, size: int) -> tuple[int, ...] | None:
    """Return the CRC-32 of every MiB of a blob of this size; None where they are not known."""
    count = -(-size // CHUNK_BYTES)
    try:
        with open(layout.blob_checks(sha256), "rb") as file:
            data = file.read(_CHECKS.size + 4 * count + 5)
    except OSError:
        return None
    if len(data) != _CHECKS.size + 4 * count + 4:
        return None
    if data[: _CHECKS.size] != _CHECKS.pack(_CHECKS_MAGIC, CHUNK_BYTES, count, size):
        return None
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        return None
    return struct.unpack(f"<{count}I", data[_CHECKS.size : -4])


def check_space(folder: Path, needed_bytes: int) -> None:
    """Return normally if a folder's disk has room for so many bytes more and 5 %.

    Raises:
        StoreError: facts path, required_bytes, free_bytes.
    """
    required = needed_bytes + int(needed_bytes * SPARE_SHARE)
    free = _free_bytes(folder)
    if free is not None and free < required:
        raise StoreError(
            f"{folder}: needs {required} bytes free, found {free}",
            hint="make room or choose another models folder",
            path=str(folder),
            required_bytes=required,
            free_bytes=free,
        )


@contextlib.contextmanager
def disk_errors(action: str, path: Path, needed_bytes: int) -> Iterator[None]:
    """Inside, an OSError becomes a StoreError that says what the disk refused and why."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _NO_SPACE:
            free = _free_bytes(path.parent)
            raise StoreError(
                f"{path}: cannot {action}: {reason}; {needed_bytes} bytes more are needed, "
                f"{free} are free",
                hint="make room and start again; what is there is kept",
                path=str(path),
                required_bytes=needed_bytes,
                free_bytes=free,
            ) from error
        raise StoreError(
            f"{path}: cannot {action}: {reason}",
            hint="check the folder and its disk, then start again; what is there is kept",
            path=str(path),
        ) from error


def _free_bytes(folder: Path) -> int | None:
    """Free bytes for this user on the disk that a folder is on or will be on."""
    for place in (folder, *folder.parents):
        try:
            found = os.statvfs(place)
        except OSError:
            continue
        return found.f_bavail * found.f_frsize
    return None


def _open_part(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o644)
    except PermissionError:
        # A process was killed between making it read-only and giving it its final name.
        os.chmod(path, 0o644)
        return os.open(path, flags, 0o644)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        written = os.pwrite(descriptor, data[done:], offset + done)
        if written <= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        done += written


def read_all(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill a buffer from a place in a file; returns the bytes read, fewer at its end."""
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def _write_durable(path: Path, data: bytes) -> None:
    """Put a small file under its name, whole or not at all."""
    # Always the same name, so that what a killed process left is used up by the next one. Two that
    # write it at once, where locks do nothing, write the same bytes.
    temporary = path.with_name(f".{path.name}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(temporary, flags, 0o644)
        try:
            _write_all(descriptor, memoryview(data), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
