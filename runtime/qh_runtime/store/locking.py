"""The lock of the whole store, held for moments while manifests and blobs are put together; and
whether anybody holds the lock of a single file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qh_runtime.errors import StoreError
from qh_runtime.store.layout import StoreLayout

__all__ = ["remove_held", "store_lock", "unused", "unused_key"]

# Nobody downloads, hashes or copies under this lock.
_TIMEOUT_S = 60.0


@contextmanager
def store_lock(layout: StoreLayout, timeout_s: float = _TIMEOUT_S) -> Iterator[None]:
    """Hold the store's lock; it is free again as soon as this process ends, however it ends.

    Raises:
        StoreError: another process kept it for the whole time, or it cannot be made. Facts: path.
    """
    from filelock import FileLock, Timeout

    try:
        layout.locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(layout.store_lock)
        lock.acquire(timeout=timeout_s)
    except Timeout as error:
        raise StoreError(
            f"{layout.store_lock}: another process has been changing the store for "
            f"{timeout_s:.0f} s",
            hint="wait for it to end, or end it",
            path=str(layout.store_lock),
        ) from error
    except OSError as error:
        raise StoreError(
            f"{layout.store_lock}: cannot be locked: {error.strerror}",
            hint="check that the store's folder can be written",
            path=str(layout.store_lock),
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def unused_key(layout: StoreLayout, key: str) -> Iterator[bool]:
    """As `unused`, for the lock of one file of the store.

    Raises:
        StoreError: not a key.
    """
    with unused(layout.lock(key)) as free:
        yield free


@contextmanager
def unused(lock_file: Path) -> Iterator[bool]:
    """Hold a lock if nobody else does; yields whether nobody does.

    A lock file that there was not is gone again afterwards.
    """
    from filelock import FileLock, Timeout

    there = lock_file.exists()
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        if not there:
            remove_held(lock_file)
        lock.release()


def remove_held(lock_file: Path) -> None:
    """Remove a lock file that the caller holds, or leave it where the system does not allow that.

    Who has it open already gets the lock of a file without a name afterwards: filelock notices
    that and begins anew with the file that has the name then, so nobody works under a lock that
    others do not see.
    """
    with contextlib.suppress(OSError):
        lock_file.unlink()
