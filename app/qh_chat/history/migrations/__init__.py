"""Schema changes, one numbered file each; `MIGRATIONS[n]` goes from version n to n + 1."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from qh_chat.history.migrations import m0001_initial

__all__ = ["MIGRATIONS", "SCHEMA_VERSION"]

MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (m0001_initial.apply,)
SCHEMA_VERSION = len(MIGRATIONS)
