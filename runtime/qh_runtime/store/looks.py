"""Folders of links that a pull looks through before there is a manifest; none outlives its process.

    snapshots/.<slug>.<token>.tmp   links to small files, as the loader would find them
    locks/look-<token>.lock         held as long as the process looks; made before the folder

A folder whose lock is free or gone is of a killed process, however young it is.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qh_runtime.store.layout import StoreLayout, model_slug
from qh_runtime.store.locking import remove_held, unused
from qh_runtime.store.part import disk_errors

__all__ = ["abandoned_looks", "is_abandoned", "is_look", "look_folder"]

_FOLDER = re.compile(r"\..+\.([0-9a-f]{8})\.tmp")


@contextmanager
def look_folder(layout: StoreLayout, name: str) -> Iterator[Path]:
    """An empty folder of the store that is gone afterwards; what killed processes left goes first.

    Raises:
        StoreError: the disk refuses. Facts: path.
    """
    from filelock import FileLock

    with disk_errors("make", layout.snapshots, 0):
        layout.snapshots.mkdir(parents=True, exist_ok=True)
        layout.locks.mkdir(parents=True, exist_ok=True)
        for path in abandoned_looks(layout):
            shutil.rmtree(path, ignore_errors=True)
        token = secrets.token_hex(4)
        lock_file = _lock_file(layout, token)
        lock = FileLock(lock_file)
        lock.acquire()
    folder = layout.snapshots / f".{model_slug(name)}.{token}.tmp"
    try:
        with disk_errors("make", folder, 0):
            folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        remove_held(lock_file)
        lock.release()


def abandoned_looks(layout: StoreLayout) -> Iterator[Path]:
    """Yield the folders of processes that were killed."""
    for path in sorted(layout.snapshots.glob(".*.tmp")):
        if is_abandoned(layout, path):
            yield path


def is_look(path: Path) -> bool:
    """Whether it has the name of such a folder."""
    return _FOLDER.fullmatch(path.name) is not None


def is_abandoned(layout: StoreLayout, folder: Path) -> bool:
    """Whether it is such a folder, and the process that made it is gone."""
    match = _FOLDER.fullmatch(folder.name)
    if match is None:
        return False
    lock_file = _lock_file(layout, match[1])
    if not lock_file.exists():
        return True
    with unused(lock_file) as free:
        return free


def _lock_file(layout: StoreLayout, token: str) -> Path:
    return layout.locks / f"look-{token}.lock"
