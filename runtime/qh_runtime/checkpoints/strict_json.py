"""JSON from strangers: no duplicate keys, no NaN, bounded size and depth, and one clear error.

The parser is the standard library's; what it lets through and these rules forbid is caught by its
hooks or by one walk over the result.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from pathlib import Path
from typing import Any, NoReturn

from qh_runtime.errors import CheckpointError

__all__ = ["decode", "is_text", "parse_object", "quoted"]

_MAX_QUOTED = 120
# Digits of an integer; more than any size in bytes needs, less than Python's own limit.
_MAX_DIGITS = 40
# The parser would copy a longer one before any hook could object.
_LONG_NUMBER = re.compile(r"(?<![0-9.eE+-])[0-9.eE+-]{4096}")


def quoted(value: object) -> str:
    """A short, quoted, ASCII form of a hostile value: no control or direction characters."""
    if isinstance(value, str):
        # Cut first: the value may be as large as the file.
        text = ascii(value[:_MAX_QUOTED])
    else:
        text = ascii(reprlib.repr(value))[1:-1]
    return text if len(text) <= _MAX_QUOTED else f"{text[: _MAX_QUOTED - 4]}...{text[-1]}"


def decode(data: bytes, where: str, *, path: Path) -> str:
    """Return UTF-8 bytes as text. Raises CheckpointError. Facts: path, rule."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{where}: byte {error.start} is not UTF-8",
            hint="download the file again",
            path=str(path),
            rule="encoding",
        ) from error
    return text


def parse_object(text: str, where: str, *, path: Path, max_depth: int | None) -> dict[str, Any]:
    """Return the JSON object in a text.

    Args:
        text: without a byte order mark.
        where: how errors call it, such as "config.json".
        path: the file, a fact of the errors.
        max_depth: objects and lists inside each other; None where the caller looks at every value
            itself, depth and broken surrogate pairs included.

    Raises:
        CheckpointError: the rule that is broken, with the key or the place. Facts: path, rule.
    """

    def fail(rule: str, message: str) -> NoReturn:
        raise CheckpointError(
            f"{where}: {message}", hint="download the file again", path=str(path), rule=rule
        )

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(items)
        if len(out) != len(items):
            seen: set[str] = set()
            for key, _ in items:
                if key in seen:
                    fail("duplicate key", f"key {quoted(key)} appears twice in one object")
                seen.add(key)
        return out

    def constant(text: str) -> NoReturn:
        fail("number", f"{text} is not a JSON number")

    def integer(text: str) -> int:
        if len(text) > _MAX_DIGITS:
            fail("number", f"integer of {len(text)} digits, expected at most {_MAX_DIGITS}")
        return int(text)

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            fail("number", f"number {quoted(text)} is not finite")
        return value

    if text.startswith("\ufeff"):
        fail("encoding", "starts with a byte order mark")
    if _LONG_NUMBER.search(text):
        fail("number", "a number of thousands of digits")
    try:
        parsed = json.loads(
            text,
            object_pairs_hook=pairs,
            parse_constant=constant,
            parse_int=integer,
            parse_float=number,
        )
    except json.JSONDecodeError as error:
        fail("syntax", f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}")
    except RecursionError:
        fail("depth", f"nested deeper than {max_depth or 'any file of this kind'}")
    if not isinstance(parsed, dict):
        fail("object", f"expected an object, found {type(parsed).__name__}")
    problem = None if max_depth is None else _walk(parsed, max_depth)
    if problem is not None:
        fail(*problem)
    return parsed


def _walk(root: dict[str, Any], max_depth: int) -> tuple[str, str] | None:
    """The first broken rule (rule, message) of a parsed value: depth, or text that is no UTF-8."""
    stack: list[tuple[object, int]] = [(root, 1)]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, str):
            if not is_text(value):
                return "encoding", f"string {quoted(value)} holds half of a surrogate pair"
        elif isinstance(value, dict):
            if depth > max_depth:
                return "depth", f"nested deeper than {max_depth}"
            for key in value:
                if not is_text(key):
                    return "encoding", f"key {quoted(key)} holds half of a surrogate pair"
            stack.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list):
            if depth > max_depth:
                return "depth", f"nested deeper than {max_depth}"
            stack.extend((item, depth + 1) for item in value)
    return None


def is_text(value: str) -> bool:
    """Whether a string is Unicode text: no half of a surrogate pair."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
