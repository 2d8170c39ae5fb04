"""Is a model in the store what its manifest says? Every byte (`verify`), or a glance (`check`).

A glance takes a few milliseconds: links, sizes, the CRC-32 of small files and of a few MiB drawn
anew each time; a file that was written to after it was finished is looked at in full, once.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import logging
import os
import random
import stat
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qh_runtime.errors import IntegrityError
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.locking import store_lock
from qh_runtime.store.manifest import Manifest, StoredFile
from qh_runtime.store.part import CHUNK_BYTES, chunk_checks
from qh_runtime.store.snapshot import link_snapshot, wrong_links
from qh_runtime.store.transfer import StopSignal

__all__ = [
    "Finding",
    "OnVerify",
    "Problem",
    "Verifier",
    "VerifyProgress",
    "check",
]

_log = logging.getLogger(__name__)

Problem = Literal["missing", "size", "content", "unreadable", "link", "checks"]
# How many MiB of the large files a glance looks at.
_SAMPLES = 4
# Small files that a glance looks at in full, together.
_SMALL_BYTES = 4 << 20


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        path: the file's name in the model. sha256: of what should be there.
        problem: "missing", "size", "content" (bytes differ), "unreadable" (permissions), "link"
            (the model's folder does not lead to it), "checks" (its CRC file is missing or wrong).
        bad_bytes: of the content, as far as the CRC of every MiB tells; 0 where it is sound.
        message: what was expected and found.
    """

    path: str
    sha256: str
    problem: Problem
    bad_bytes: int
    message: str


@dataclass(frozen=True)
class VerifyProgress:
    """How far one model is. Files that another model shares are read once."""

    name: str
    path: str
    done_bytes: int
    total_bytes: int


OnVerify = Callable[[VerifyProgress], None]


class Verifier:
    """Reads every byte of models; what models share is read once.

    Args:
        on_progress: called for every MiB.
        stop: ends `verify` early.
    """

    def __init__(
        self,
        layout: StoreLayout,
        on_progress: OnVerify | None = None,
        stop: StopSignal | None = None,
    ) -> None:
        self._layout = layout
        self._on_progress = on_progress
        self._stop = stop or StopSignal()
        self._known: dict[str, tuple[Problem, int, str] | None] = {}

    def verify(self, manifest: Manifest) -> tuple[Finding, ...] | None:
        """Return what is wrong with a model that is ready, in the order of its files.

        Permissions that still allow reading do not matter. None: it was stopped.

        Raises:
            OSError: the disk fails in a way that says nothing about the file.
        """
        done = 0
        findings: list[Finding] = []
        for file in manifest.files:
            found = self._known.get(file.sha256)
            if file.sha256 not in self._known:
                found = self._read(manifest, file, done)
                if self._stop.stopped:
                    return None
                self._known[file.sha256] = found
            done += file.size
            if found is not None:
                problem, bad_bytes, message = found
                findings.append(Finding(file.path, file.sha256, problem, bad_bytes, message))
        for path in wrong_links(self._layout, manifest):
            sha256 = next(x.sha256 for x in manifest.files if x.path == path)
            message = "the link in the model's folder is missing or leads elsewhere"
            findings.append(Finding(path, sha256, "link", 0, message))
        self._report(manifest, "", done)
        return tuple(findings)

    def forget(self, sha256: str) -> None:
        """Read this file again the next time: it was repaired."""
        self._known.pop(sha256, None)

    def _read(
        self, manifest: Manifest, file: StoredFile, before: int
    ) -> tuple[Problem, int, str] | None:
        """What is wrong with one blob: problem, bad bytes, message."""
        blob = self._layout.blob(file.sha256)
        problem = _shape_problem(blob, file)
        if problem is not None:
            return problem
        digest = hashlib.sha256()
        done = 0
        try:
            with open(blob, "rb", buffering=0) as reader:
                # What the disk holds, not what memory still remembers of it.
                _forget_cached(reader.fileno())
                while data := reader.read(CHUNK_BYTES):
                    digest.update(data)
                    done += len(data)
                    self._report(manifest, file.path, before + done)
                    if self._stop.stopped:
                        return None
        except PermissionError as error:
            return "unreadable", 0, f"cannot be read: {error.strerror}"
        if digest.hexdigest() == file.sha256:
            if chunk_checks(self._layout, file.sha256, file.size) is None:
                return "checks", 0, "the CRC of its parts is missing or damaged"
            return None
        bad = damaged_chunks(self._layout, file)
        bad_bytes = sum(min(CHUNK_BYTES, file.size - x * CHUNK_BYTES) for x in bad)
        return "content", bad_bytes, f"SHA-256: expected {file.sha256}, found {digest.hexdigest()}"

    def _report(self, manifest: Manifest, path: str, done: int) -> None:
        if self._on_progress is not None:
            total = manifest.total_bytes
            self._on_progress(VerifyProgress(manifest.name, path, done, total))


def damaged_chunks(layout: StoreLayout, file: StoredFile) -> tuple[int, ...]:
    """Numbers of the MiB of a blob whose CRC-32 differs; all of them where the CRCs do not help."""
    count = -(-file.size // CHUNK_BYTES)
    checks = chunk_checks(layout, file.sha256, file.size)
    if checks is None:
        return tuple(range(count))
    bad = []
    with open(layout.blob(file.sha256), "rb", buffering=0) as reader:
        for index in range(count):
            if not _chunk_is_sound(reader.fileno(), index, file.size, checks):
                bad.append(index)
    return tuple(bad) or tuple(range(count))


def check(
    layout: StoreLayout, manifest: Manifest, pick: Callable[[int, int], Sequence[int]] | None = None
) -> None:
    """Return normally if a model that is ready looks sound; its links are put right on the way.

    Args:
        pick: (how many there are, how many to take) -> numbers of the MiB to look at.

    Raises:
        IntegrityError: the hint names the command that finds and repairs all of it. Facts: path,
            file, expected, found.
    """
    if wrong_links(layout, manifest):
        _log.warning("%s: links of its folder are made again", manifest.name)
        with store_lock(layout):
            link_snapshot(layout, manifest)
    for file in manifest.files:
        problem = _shape_problem(layout.blob(file.sha256), file)
        if problem is not None:
            raise _damaged(layout, manifest, file, problem[2])
    small = [x for x in manifest.files if x.size <= CHUNK_BYTES]
    if sum(x.size for x in small) > _SMALL_BYTES:
        small = []
    chunks = [(x, 0) for x in small if x.size]
    large = [x for x in manifest.files if x not in small and x.size]
    # The number of the first MiB behind each of them.
    ends = list(itertools.accumulate(-(-x.size // CHUNK_BYTES) for x in large))
    count = ends[-1] if ends else 0
    for number in (pick or _draw)(count, min(_SAMPLES, count)):
        at = bisect.bisect_right(ends, number)
        chunks.append((large[at], number - (ends[at - 1] if at else 0)))
    chunks += [
        (file, index)
        for file in manifest.files
        if _was_written_to(layout, file)
        for index in range(-(-file.size // CHUNK_BYTES))
    ]
    _check_chunks(layout, manifest, chunks)


def _check_chunks(
    layout: StoreLayout, manifest: Manifest, chunks: Sequence[tuple[StoredFile, int]]
) -> None:
    by_file: dict[StoredFile, set[int]] = {}
    for file, index in chunks:
        by_file.setdefault(file, set()).add(index)
    for file, indices in by_file.items():
        checks = chunk_checks(layout, file.sha256, file.size)
        if checks is None:
            # Nothing to compare with; `verify` makes them again.
            continue
        try:
            with open(layout.blob(file.sha256), "rb", buffering=0) as reader:
                for index in sorted(indices):
                    if not _chunk_is_sound(reader.fileno(), index, file.size, checks):
                        raise _damaged(
                            layout, manifest, file, f"MiB {index}: the bytes are not those of then"
                        )
        except OSError as error:
            raise _damaged(layout, manifest, file, f"cannot be read: {error.strerror}") from error
        if len(indices) == len(checks) and _was_written_to(layout, file):
            # Somebody touched it and changed nothing: it need not be read in full again.
            try:
                os.utime(layout.blob_checks(file.sha256))
            except OSError as error:
                _log.info("%s: %s", file.path, error)


def _draw(count: int, taken: int) -> Sequence[int]:
    return random.SystemRandom().sample(range(count), taken)


def _was_written_to(layout: StoreLayout, file: StoredFile) -> bool:
    """Whether a blob is younger than its CRC file, which is written when the blob is complete."""
    try:
        blob = layout.blob(file.sha256).stat().st_mtime_ns
        return blob > layout.blob_checks(file.sha256).stat().st_mtime_ns
    except OSError:
        return False


def _shape_problem(blob: Path, file: StoredFile) -> tuple[Problem, int, str] | None:
    """What can be said of a blob without reading it."""
    try:
        status = blob.lstat()
    except OSError:
        return "missing", file.size, "the file is missing"
    if not stat.S_ISREG(status.st_mode):
        return "missing", file.size, "expected a file, found a folder, link or device"
    if status.st_size != file.size:
        # From the MiB on that it ends in.
        bad_bytes = max(0, file.size - status.st_size // CHUNK_BYTES * CHUNK_BYTES)
        bad_bytes = bad_bytes if status.st_size < file.size else 0
        return "size", bad_bytes, f"expected {file.size} bytes, found {status.st_size}"
    return None


def _chunk_is_sound(descriptor: int, index: int, size: int, checks: Sequence[int]) -> bool:
    begin = index * CHUNK_BYTES
    data = os.pread(descriptor, min(CHUNK_BYTES, size - begin), begin)
    return zlib.crc32(data) == checks[index]


def _forget_cached(descriptor: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _damaged(
    layout: StoreLayout, manifest: Manifest, file: StoredFile, found: str
) -> IntegrityError:
    return IntegrityError(
        f"{manifest.name}: {file.path}: {found}",
        hint=f"qh-chat verify {manifest.name} --repair fetches what is damaged",
        path=str(layout.blob(file.sha256)),
        file=file.path,
        expected=file.sha256,
        found=found,
    )
