"""Version 1: conversations, and their messages as a tree."""

from __future__ import annotations

import sqlite3

__all__ = ["apply"]

_STATEMENTS = (
    # leaf_id is the message the person last looked at the end of; its ancestors are the path shown.
    # sampling is a JSON object of SamplingParams fields.
    """
    CREATE TABLE conversations (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        title TEXT NOT NULL,
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        model TEXT NOT NULL DEFAULT '',
        system_prompt TEXT NOT NULL DEFAULT '',
        sampling TEXT NOT NULL DEFAULT '{}',
        draft TEXT NOT NULL DEFAULT '',
        leaf_id INTEGER
    ) STRICT
    """,
    # Messages with one parent are alternatives of one turn. owner names the process that is still
    # writing a message in state 'streaming', so that another process leaves it alone.
    """
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        parent_id INTEGER REFERENCES messages (id) ON DELETE CASCADE,
        role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
        content TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('complete', 'partial', 'streaming')),
        reason TEXT NOT NULL DEFAULT '',
        note TEXT NOT NULL DEFAULT '',
        model TEXT NOT NULL DEFAULT '',
        created_at REAL NOT NULL,
        stats TEXT NOT NULL DEFAULT '',
        owner TEXT NOT NULL DEFAULT ''
    ) STRICT
    """,
    "CREATE INDEX messages_by_conversation ON messages (conversation_id, id)",
    "CREATE INDEX messages_by_parent ON messages (parent_id)",
    "CREATE INDEX conversations_by_update ON conversations (updated_at DESC)",
)


def apply(connection: sqlite3.Connection) -> None:
    """Create the tables in an empty file. Raises sqlite3.Error."""
    for statement in _STATEMENTS:
        connection.execute(statement)
