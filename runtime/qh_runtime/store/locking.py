"""The lock of the whole store, held for moments while manifests and blobs are put together; and
whether anybody holds the lock of a single file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qh_runtime.errors import StoreError
from qh_runtime.store.layout import StoreLayout

__all__ = ["store_lock", "unused", "unused_key"]

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
    """Hold the lock of one file if nobody else does; yields whether nobody does.

    The caller holds the store's lock, so a lock that was never made is not taken meanwhile.

    Raises:
        StoreError: not a key.
    """
    path = layout.lock(key)
    if not path.exists():
        yield True
        return
    with unused(path) as free:
        yield free


@contextmanager
def unused(lock_file: Path) -> Iterator[bool]:
    """Hold a lock if nobody else does; yields whether nobody does."""
    from filelock import FileLock, Timeout

    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
