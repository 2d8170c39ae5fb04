"""Teaches Textual the one key it does not know: alt+enter as ESC CR, as most terminals send it.

Without this it arrives as a plain enter, which would send a message that was not finished.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from enum import StrEnum
from typing import cast

from textual._ansi_sequences import ANSI_SEQUENCES_KEYS

__all__ = ["teach_alt_enter"]


class _Key(StrEnum):
    ALT_ENTER = "alt+enter"


def teach_alt_enter() -> None:
    """ESC CR is alt+enter from now on, in this process."""
    table = cast("MutableMapping[str, tuple[_Key, ...]]", ANSI_SEQUENCES_KEYS)
    table.setdefault("\x1b\r", (_Key.ALT_ENTER,))
