"""Sentences on a terminal break between words; elsewhere a sentence stays a line, for grep."""

from __future__ import annotations

import os
import textwrap
from typing import TextIO

__all__ = ["wrapped"]

# Narrower than this, a terminal's own way is as good.
_MIN_COLUMNS = 20


def wrapped(text: str, stream: TextIO) -> str:
    """The text with line breaks where the terminal behind a stream needs them, between words.

    Names and addresses stay in one piece, so that they can be copied.
    """
    try:
        columns = os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 0
    except (OSError, ValueError):
        columns = 0
    if columns < _MIN_COLUMNS:
        return text
    lines = (
        textwrap.fill(
            line,
            columns,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
        for line in text.split("\n")
    )
    return "\n".join(lines)
