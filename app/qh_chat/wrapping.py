"""Sentences and tables on a terminal that is narrow; elsewhere a line stays a line, for grep."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from typing import TextIO

__all__ = ["named_rows", "wrapped"]

# Narrower than this, a terminal's own way is as good.
_MIN_COLUMNS = 20


def wrapped(text: str, stream: TextIO) -> str:
    """The text with line breaks where the terminal behind a stream needs them, between words.

    Names and addresses stay in one piece, so that they can be copied.
    """
    columns = _columns(stream)
    if not columns:
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


def named_rows(rows: Sequence[tuple[str, str]], stream: TextIO) -> Iterator[str]:
    """Yield the lines of a table of names and what is said of them.

    On a terminal that is too narrow for both, a long name has a line of its own.
    """
    width = max((len(name) for name, _ in rows), default=0)
    columns = _columns(stream)
    if columns:
        # What no name leaves room for, such as a reason, has its line broken in any case.
        most = columns - 2 - _MIN_COLUMNS
        rests = (len(rest) for _, rest in rows if len(rest) <= most)
        width = min(width, columns - 2 - max(rests, default=0))
    for name, rest in rows:
        if len(name) > width:
            yield name
            name = ""
        yield f"{name:{width}}  {rest}"


def _columns(stream: TextIO) -> int:
    """Of the terminal behind a stream; 0 where there is none, or none that is wide enough."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 0
    except (OSError, ValueError):
        return 0
    return columns if columns >= _MIN_COLUMNS else 0
