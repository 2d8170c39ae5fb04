"""The lock of one unfinished or damaged file: held by the process that works on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from qh_runtime.errors import StoreError
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.part import disk_errors
from qh_runtime.store.transfer import StopSignal

__all__ = ["file_lock"]

# How soon a lock is noticed to be free; it is free at once when its process is killed.
_POLL_S = 0.1


@contextlib.contextmanager
def file_lock(
    layout: StoreLayout, key: str, stop: StopSignal, on_wait: Callable[[], None]
) -> Iterator[bool]:
    """Hold the lock of a file; True, or False if the stop came first.

    Args:
        on_wait: called while another process or thread has it.

    Raises:
        StoreError: the lock file cannot be made. Facts: path.
    """
    from filelock import FileLock, Timeout

    path = layout.lock(key)
    lock = FileLock(path)
    with disk_errors("lock", path, 0):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        if stop.stopped:
            yield False
            return
        with disk_errors("lock", path, 0):
            try:
                lock.acquire(blocking=False)
                break
            except Timeout:
                # An OSError as well, and here it means that somebody else works on this file.
                pass
            except NotImplementedError as error:
                raise StoreError(
                    f"{path}: this file system has no locks",
                    hint="choose a models folder on a local disk",
                    path=str(path),
                ) from error
        on_wait()
        stop.wait(_POLL_S)
    try:
        yield True
    finally:
        lock.release()
