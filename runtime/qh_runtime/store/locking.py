"""The lock of the whole store: held for moments, while manifests and blobs are put together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qh_runtime.errors import StoreError
from qh_runtime.store.layout import StoreLayout

__all__ = ["store_lock"]

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
