"""Writes single values into the settings file, atomically, and keeps the person's own comments."""

from __future__ import annotations

import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path

from qh_chat.settings import SettingsError, Value

__all__ = ["save_values", "toml_value", "updated_toml"]

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def save_values(path: Path, changes: Mapping[str, Value]) -> None:
    """Change "section.name" values in the file; None removes one. All or nothing.

    Raises:
        SettingsError: the file cannot be read as TOML, or cannot be written. Facts: path.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        _replace_file(path, updated_toml(before, changes))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(
            f"{path}: settings cannot be saved: {error}",
            hint="they hold until the app ends",
            path=str(path),
        ) from error


def updated_toml(text: str, changes: Mapping[str, Value]) -> str:
    """The text of a TOML file with values changed, its other lines untouched.

    Raises:
        tomllib.TOMLDecodeError: `text` is not TOML.
    """
    tomllib.loads(text)
    lines = text.splitlines()
    for key, value in changes.items():
        section, _, name = key.partition(".")
        start, end = _table(lines, section)
        if start is None:
            if value is None:
                continue
            if lines and lines[-1].strip():
                lines.append("")
            lines += [f"[{section}]", f"{name} = {toml_value(value)}"]
            continue
        first, after = _entry(lines, start, end, name)
        new = [] if value is None else [f"{name} = {toml_value(value)}"]
        lines[first:after] = new
    return "\n".join(lines) + "\n" if lines else ""


def toml_value(value: bool | int | float | str | tuple[str, ...]) -> str:
    """A value as TOML text on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    pieces = [
        _ESCAPES.get(c) or (f"\\u{ord(c):04x}" if ord(c) < 0x20 or ord(c) == 0x7F else c)
        for c in value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    ]
    return '"' + "".join(pieces) + '"'


def _table(lines: list[str], section: str) -> tuple[int | None, int]:
    """Line after the header of a table, and the line after the last one of its entries."""
    header = re.compile(rf"\s*\[\s*{re.escape(section)}\s*\]\s*(#.*)?$")
    start = None
    for index, line in enumerate(lines):
        if start is None:
            # The lines before a real header are a document of their own; within a text, not.
            if header.match(line) and _parses(lines[:index]):
                start = index + 1
        elif re.match(r"\s*\[[^\]]+\]\s*(#.*)?$", line) and _parses(lines[:index]):
            return start, _without_end(lines, start, index, ("", "#"))
    return start, _without_end(lines, start or 0, len(lines), ("",))


def _entry(lines: list[str], start: int, end: int, name: str) -> tuple[int, int]:
    """The lines that a key takes within its table; an empty range at the end if it is not there."""
    index = start
    while index < end:
        after = index + 1
        while after < end and not _parses(lines[index:after]):
            after += 1
        try:
            found = tomllib.loads("\n".join(lines[index:after]))
        except tomllib.TOMLDecodeError:
            found = {}
        if name in found:
            return index, after
        index = after
    return end, end


def _parses(lines: list[str]) -> bool:
    try:
        tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError:
        return False
    return True


def _without_end(lines: list[str], start: int, end: int, idle: tuple[str, ...]) -> int:
    """The end without empty lines, and without the comments that introduce the next table."""
    while end > start and lines[end - 1].strip()[:1] in idle:
        end -= 1
    return end


def _replace_file(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
