"""The SQLite file below the history: opening, checking, migrating, moving a broken one aside.

One connection per process, guarded by one lock. SQLite before 3.51.3 can corrupt a WAL file when
two connections write at once (fixed 2026-03-13), so older libraries use the rollback journal.
`synchronous=FULL`: a turn that was acknowledged survives a power cut.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from pathlib import Path

from filelock import FileLock, Timeout

from qh_chat.history.migrations import MIGRATIONS, SCHEMA_VERSION

__all__ = ["HistoryMarkers", "NewerHistoryError", "connect_file", "connect_memory", "move_aside"]

log = logging.getLogger(__name__)

WAL_FIXED = (3, 51, 3)
SIDE_FILES = ("", "-journal", "-wal", "-shm")


class NewerHistoryError(Exception):
    """The file was written by a newer version of the app; it must not be touched."""

    def __init__(self, found: int) -> None:
        super().__init__(f"schema {found}, known up to {SCHEMA_VERSION}")
        self.found = found


def connect_memory() -> sqlite3.Connection:
    """An empty history that lives as long as the process."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    _prepare(connection)
    _migrate(connection, None)
    return connection


def connect_file(path: Path, check: bool) -> sqlite3.Connection:
    """Open or create the file, with the newest schema.

    Args:
        path: the file; its folder is made with mode 0700, itself with 0600.
        check: look through the whole file first (after an unclean exit).

    Raises:
        sqlite3.DatabaseError: it is not a database, or is damaged (not an OperationalError).
        sqlite3.OperationalError: it cannot be read or written just now.
        OSError: the folder or file cannot be made.
        NewerHistoryError: a newer version wrote it.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    try:
        _prepare(connection)
        mode = "wal" if sqlite3.sqlite_version_info >= WAL_FIXED else "delete"
        connection.execute(f"PRAGMA journal_mode={mode}")
        if check:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(f"quick_check: {found}")
        _migrate(connection, path)
        _check_writable(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def move_aside(path: Path, now: float) -> Path:
    """Rename a broken file and its journals out of the way; gives the new path. Raises OSError."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    target = path.with_name(f"{path.stem}.damaged-{stamp}{path.suffix}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.stem}.damaged-{stamp}-{number}{path.suffix}")
    for side in SIDE_FILES:
        source = path.with_name(path.name + side)
        if source.exists():
            source.rename(target.with_name(target.name + side))
    return target


def _prepare(connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")
    # A file from elsewhere may hold views and triggers; none of ours call functions.
    connection.execute("PRAGMA trusted_schema=OFF")


def _migrate(connection: sqlite3.Connection, path: Path | None) -> None:
    version = _version(connection)
    if version > SCHEMA_VERSION:
        raise NewerHistoryError(version)
    if version == SCHEMA_VERSION:
        return
    if path is not None and version > 0:
        _back_up(connection, path.with_name(f"{path.stem}.v{version}.backup{path.suffix}"))
    connection.execute("BEGIN EXCLUSIVE")
    try:
        # Another process may have migrated while this one waited for the lock.
        for step in MIGRATIONS[_version(connection) :]:
            step(connection)
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _back_up(connection: sqlite3.Connection, target: Path) -> None:
    os.close(os.open(target, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600))
    copy = sqlite3.connect(target)
    try:
        connection.backup(copy)
    finally:
        copy.close()


def _check_writable(connection: sqlite3.Connection) -> None:
    """Fail now, and not at the first message, when the file or its folder is read-only."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


class HistoryMarkers:
    """A lock file per running process, so that a later one knows who ended without closing.

    Args:
        folder: where the lock files lie, beside the history.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.owner = f"{os.getpid()}-{time.time_ns():x}"
        self._lock = FileLock(folder / f"history-{self.owner}.lock", mode=0o600)

    def enter(self) -> tuple[bool, frozenset[str]]:
        """Mark this process as running.

        Returns:
            Whether an earlier process ended without closing, and the owners that still run.
        """
        alive: set[str] = {self.owner}
        unclean = False
        for path in sorted(self._folder.glob("history-*.lock")):
            probe = FileLock(path, mode=0o600)
            try:
                probe.acquire(timeout=0)
            except Timeout:
                alive.add(path.stem.removeprefix("history-"))
                continue
            unclean = True
            probe.release()
            path.unlink(missing_ok=True)
        self._lock.acquire(timeout=0)
        return unclean, frozenset(alive)

    def leave(self) -> None:
        """Unmark this process."""
        self._lock.release(force=True)
        Path(self._lock.lock_file).unlink(missing_ok=True)
