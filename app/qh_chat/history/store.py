"""The history: conversations and their trees of messages, kept on disk when that is possible.

The app never stops because of the disk. When the file cannot be opened or written, everything goes
on in memory, `notice` says so, and each later write tries to return to the file.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from qh_chat.history.database import (
    HistoryMarkers,
    NewerHistoryError,
    connect_file,
    connect_memory,
    move_aside,
)
from qh_chat.history.records import (
    ChatSummary,
    ConversationRecord,
    MessageRecord,
    MessageState,
    Role,
    sampling_from_json,
    sampling_to_json,
    stats_from_json,
    stats_to_json,
)
from qh_runtime.options import SamplingParams
from qh_runtime.session.events import GenerationStats

__all__ = ["HistoryStore"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_SURROGATES = re.compile("[\ud800-\udfff]")

RETRY_S = 10.0
"""Least time between two attempts to return from memory to the file."""

EXCERPT_BEFORE, EXCERPT_AFTER = 20, 60


class HistoryStore:
    """Conversations on disk, or in memory while the disk refuses.

    Args:
        path: the SQLite file; None keeps everything in memory and says nothing about it.
        clock: seconds since 1970.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.RLock()
        self._markers: HistoryMarkers | None = None
        self._owner = ""
        self._file: sqlite3.Connection | None = None
        self._version_left = 0
        self._retry_at = 0.0
        self.notice: str | None = None
        """What the person should know about the history, or None. Cleared by `take_notice`."""
        self._connection = self._open(path)

    @property
    def saved(self) -> bool:
        """What is written now reaches the disk (or was never meant to)."""
        return self._path is None or self._file is self._connection

    def take_notice(self) -> str | None:
        """The notice, once."""
        with self._lock:
            notice, self.notice = self.notice, None
            return notice

    def close(self) -> None:
        """Close the file; the next process then knows that nothing was lost."""
        with self._lock:
            if self._file is not None and self._file is not self._connection:
                self._file.close()
            self._connection.close()
            if self._markers is not None:
                self._markers.leave()
                self._markers = None

    # Conversations

    def conversations(self, limit: int = 500) -> list[ChatSummary]:
        """The last used ones first."""
        rows = self._read(
            "SELECT id, title, updated_at FROM conversations ORDER BY updated_at DESC, id DESC "
            "LIMIT ?",
            (limit,),
        )
        return [ChatSummary(row["id"], row["title"], row["updated_at"]) for row in rows]

    def conversation(self, conversation_id: int) -> ConversationRecord | None:
        """One conversation, or None when it is gone."""
        rows = self._read("SELECT * FROM conversations WHERE id=?", (conversation_id,))
        return _conversation(rows[0]) if rows else None

    def create(
        self, title: str, model: str, system_prompt: str, sampling: SamplingParams
    ) -> ConversationRecord:
        """A new, empty conversation."""
        now = self._clock()

        def insert(connection: sqlite3.Connection) -> int:
            cursor = connection.execute(
                "INSERT INTO conversations (title, created_at, updated_at, model, system_prompt, "
                "sampling) VALUES (?, ?, ?, ?, ?, ?)",
                (title, now, now, model, system_prompt, sampling_to_json(sampling)),
            )
            return int(cursor.lastrowid or 0)

        new_id = self._write(insert)
        return ConversationRecord(new_id, title, now, now, model, system_prompt, sampling, "", None)

    def rename(self, conversation_id: int, title: str) -> None:
        """Give a conversation a title."""
        self._set(conversation_id, "title=?", title)

    def set_draft(self, conversation_id: int, draft: str) -> None:
        """Keep what the person typed and did not send yet."""
        self._set(conversation_id, "draft=?", draft)

    def set_leaf(self, conversation_id: int, leaf_id: int | None) -> None:
        """Keep which branch is shown."""
        self._set(conversation_id, "leaf_id=?", leaf_id)

    def set_options(
        self, conversation_id: int, system_prompt: str, sampling: SamplingParams
    ) -> None:
        """Keep the system prompt and sampling settings of a conversation."""
        self._set(
            conversation_id,
            "system_prompt=?, sampling=?",
            system_prompt,
            sampling_to_json(sampling),
        )

    def delete(self, conversation_id: int) -> None:
        """Remove a conversation with all its messages."""
        self._write(
            lambda connection: connection.execute(
                "DELETE FROM conversations WHERE id=?", (conversation_id,)
            )
        )

    # Messages

    def messages(self, conversation_id: int) -> list[MessageRecord]:
        """All messages of all branches, oldest first."""
        rows = self._read(
            "SELECT * FROM messages WHERE conversation_id=? ORDER BY id", (conversation_id,)
        )
        return [_message(row) for row in rows]

    def add(
        self,
        conversation_id: int,
        parent_id: int | None,
        role: Role,
        content: str,
        *,
        state: MessageState = "complete",
        model: str = "",
    ) -> MessageRecord:
        """Append a message, and show its branch from now on."""
        now = self._clock()
        owner = self._owner if state == "streaming" else ""
        content = _storable(content)

        def insert(connection: sqlite3.Connection) -> int:
            cursor = connection.execute(
                "INSERT INTO messages (conversation_id, parent_id, role, content, state, model, "
                "created_at, owner) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (conversation_id, parent_id, role, content, state, model, now, owner),
            )
            message_id = int(cursor.lastrowid or 0)
            connection.execute(
                "UPDATE conversations SET leaf_id=?, updated_at=? WHERE id=?",
                (message_id, now, conversation_id),
            )
            return message_id

        message_id = self._write(insert)
        return MessageRecord(
            message_id, conversation_id, parent_id, role, content, state, "", "", model, now, None
        )

    def flush_partial(self, message_id: int, content: str) -> None:
        """Keep what has been streamed so far; does nothing once the answer is finished."""
        self._write(
            lambda connection: connection.execute(
                "UPDATE messages SET content=? WHERE id=? AND state='streaming'",
                (_storable(content), message_id),
            )
        )

    def finish(
        self,
        message_id: int,
        content: str,
        reason: str,
        *,
        partial: bool,
        stats: GenerationStats | None = None,
        note: str = "",
    ) -> None:
        """Keep an answer as it ended; it is on disk when this returns (if `saved`)."""
        now = self._clock()

        def update(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE messages SET content=?, state=?, reason=?, note=?, stats=?, owner='' "
                "WHERE id=?",
                (
                    _storable(content),
                    "partial" if partial else "complete",
                    reason,
                    note,
                    stats_to_json(stats),
                    message_id,
                ),
            )
            connection.execute(
                "UPDATE conversations SET updated_at=? WHERE id="
                "(SELECT conversation_id FROM messages WHERE id=?)",
                (now, message_id),
            )

        self._write(update)

    def search(self, text: str, limit: int = 200) -> list[ChatSummary]:
        """Conversations whose title or messages contain the text, whatever its case."""
        wanted = text.casefold()
        if not wanted:
            return self.conversations(limit)
        rows = self._read(
            """
            SELECT c.id, c.title, c.updated_at,
                   (SELECT m.content FROM messages m
                    WHERE m.conversation_id = c.id AND qh_contains(m.content, ?)
                    ORDER BY m.id LIMIT 1) AS hit
            FROM conversations c
            WHERE hit IS NOT NULL OR qh_contains(c.title, ?)
            ORDER BY c.updated_at DESC, c.id DESC LIMIT ?
            """,
            (wanted, wanted, limit),
        )
        return [
            ChatSummary(
                row["id"], row["title"], row["updated_at"], _excerpt(row["hit"] or "", wanted)
            )
            for row in rows
        ]

    # The file below

    def _open(self, path: Path | None) -> sqlite3.Connection:
        if path is None:
            return _with_functions(connect_memory())
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._markers = HistoryMarkers(path.parent)
            unclean, alive = self._markers.enter()
            self._owner = self._markers.owner
        except OSError as error:
            return self._in_memory(f"The history cannot be used: {_why(error)}", path)
        connection: sqlite3.Connection | None = None
        try:
            connection = connect_file(path, check=unclean)
            self._recover(connection, alive)
        except NewerHistoryError as error:
            return self._in_memory(
                f"The history was written by a newer qh-chat (schema {error.found})", path
            )
        except (sqlite3.OperationalError, OSError) as error:
            if connection is not None:
                connection.close()
            return self._in_memory(f"The history cannot be opened: {_why(error)}", path)
        except sqlite3.DatabaseError as error:
            if connection is not None:
                connection.close()
            connection = self._replace_damaged(path, error)
            if connection is None:
                return self._connection
        self._file = _with_functions(connection)
        return self._file

    def _replace_damaged(self, path: Path, error: Exception) -> sqlite3.Connection | None:
        log.error("history %s is damaged: %s", path, error)
        try:
            kept = move_aside(path, self._clock())
            connection = connect_file(path, check=False)
        except (sqlite3.Error, OSError) as again:
            self._connection = self._in_memory(
                f"The history is damaged and cannot be replaced: {_why(again)}", path
            )
            return None
        self.notice = (
            f"The history was damaged ({error}). It was kept as {kept.name} in {kept.parent}; "
            "a new one starts now."
        )
        return connection

    def _recover(self, connection: sqlite3.Connection, alive: frozenset[str]) -> None:
        """Mark answers whose process died while writing them."""
        rows = connection.execute("SELECT id, owner FROM messages WHERE state='streaming'")
        dead = [(row["id"],) for row in rows if row["owner"] not in alive]
        if dead:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "UPDATE messages SET state='partial', reason='interrupted', owner='' WHERE id=?",
                dead,
            )
            connection.execute("COMMIT")

    def _in_memory(self, why: str, path: Path) -> sqlite3.Connection:
        log.error("%s (%s)", why, path)
        self.notice = f"{why} ({path}). This session's chats are kept in memory only."
        return _with_functions(connect_memory())

    def _read(self, statement: str, values: tuple[Any, ...]) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def _set(self, conversation_id: int, assignments: str, *values: str | int | None) -> None:
        values = tuple(_storable(v) if isinstance(v, str) else v for v in values)
        self._write(
            lambda connection: connection.execute(
                f"UPDATE conversations SET {assignments} WHERE id=?", (*values, conversation_id)
            )
        )

    def _write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            self._try_return()
            try:
                return _in_transaction(self._connection, change)
            except sqlite3.Error as error:
                if self._connection is not self._file:
                    raise
                self._leave_file(error)
                return _in_transaction(self._connection, change)

    def _leave_file(self, error: sqlite3.Error) -> None:
        """Go on in memory with a copy of everything, keeping the file for later."""
        assert self._file is not None
        memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            self._file.backup(memory)
            memory.row_factory = sqlite3.Row
            memory.execute("PRAGMA foreign_keys=ON")
        except sqlite3.Error as unreadable:
            log.error("history cannot be read back: %s", unreadable)
            memory.close()
            memory = connect_memory()
        self._version_left = _data_version(self._file)
        self._retry_at = self._clock() + RETRY_S
        self._connection = _with_functions(memory)
        free = _free_bytes(self._path)
        self.notice = (
            f"The history cannot be written: {_why(error)} ({self._path}, {free} free). "
            "Chats go on in memory and are saved as soon as the disk allows."
        )
        log.error("%s", self.notice)

    def _try_return(self) -> None:
        """Write what is in memory back to the file, unless another process changed it since."""
        if self._file is None or self._connection is self._file or self._clock() < self._retry_at:
            return
        self._retry_at = self._clock() + RETRY_S
        try:
            if _data_version(self._file) != self._version_left:
                return
            self._connection.backup(self._file)
        except sqlite3.Error as error:
            log.info("history still cannot be written: %s", error)
            return
        self._connection.close()
        self._connection = self._file
        self.notice = "The history is saved again."


def _in_transaction(connection: sqlite3.Connection, change: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = change(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def _with_functions(connection: sqlite3.Connection) -> sqlite3.Connection:
    connection.create_function(
        "qh_contains", 2, lambda text, wanted: wanted in text.casefold(), deterministic=True
    )
    return connection


def _data_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


def _free_bytes(path: Path | None) -> str:
    try:
        facts = os.statvfs(path.parent if path is not None else "/")
    except (OSError, AttributeError):
        return "unknown space"
    return f"{facts.f_bavail * facts.f_frsize / 1e6:,.1f} MB"


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)


def _storable(text: str) -> str:
    """Text as SQLite can hold it: lone surrogates become U+FFFD."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def _excerpt(text: str, wanted: str) -> str:
    at = text.casefold().find(wanted)
    if at < 0:
        return ""
    start = max(0, at - EXCERPT_BEFORE)
    piece = " ".join(text[start : at + len(wanted) + EXCERPT_AFTER].split())
    return ("…" if start else "") + piece


def _conversation(row: sqlite3.Row) -> ConversationRecord:
    return ConversationRecord(
        id=row["id"],
        title=row["title"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        model=row["model"],
        system_prompt=row["system_prompt"],
        sampling=sampling_from_json(row["sampling"], SamplingParams()),
        draft=row["draft"],
        leaf_id=row["leaf_id"],
    )


def _message(row: sqlite3.Row) -> MessageRecord:
    return MessageRecord(
        id=row["id"],
        conversation_id=row["conversation_id"],
        parent_id=row["parent_id"],
        role=row["role"],
        content=row["content"],
        state=row["state"],
        reason=row["reason"],
        note=row["note"],
        model=row["model"],
        created_at=row["created_at"],
        stats=stats_from_json(row["stats"]),
    )
