"""Fact: one value read from the machine, with where it came from; and bounded file reading.

Files under /proc and /sys are read below a root folder, so that recorded trees of other machines
are read by the same code. Nothing here raises: a fact that cannot be read has no value and says
why.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

__all__ = ["Fact", "parse_cpu_list", "read_int", "read_text"]

T = TypeVar("T")

# /proc/cpuinfo of a 512-thread server is about 0.8 MB; nothing else read here comes near.
_MAX_READ_BYTES = 8 << 20
# Linux itself stops at 8192 processors; a longer list is not a list of processors.
_MAX_CPUS = 1 << 16


@dataclass(frozen=True)
class Fact(Generic[T]):
    """A value with its provenance.

    Attributes:
        value: None when it does not apply or could not be read.
        source: the file, call or library it was read from; without a value, the reason.
    """

    value: T | None
    source: str


def read_text(root: Path, path: str) -> str | None:
    """Return the text of root/path, at most 8 MiB of it; None where it cannot be read."""
    try:
        with (root / path.lstrip("/")).open("rb") as file:
            return file.read(_MAX_READ_BYTES).decode("utf-8", "replace")
    except OSError:
        return None


def read_int(root: Path, path: str) -> int | None:
    """Return the one non-negative integer in root/path; None for anything else."""
    text = read_text(root, path)
    return None if text is None else parse_int(text)


def parse_int(text: str) -> int | None:
    """Return a non-negative decimal integer below 2**64; None for anything else."""
    text = text.strip()
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        return None
    value = int(text)
    return value if value < 1 << 64 else None


def parse_cpu_list(text: str) -> frozenset[int] | None:
    """Return the processor numbers of a kernel list such as "0-3,8"; None if it is malformed."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        low = parse_int(first)
        high = parse_int(last) if dash else low
        if low is None or high is None or not low <= high < _MAX_CPUS:
            return None
        cpus.update(range(low, high + 1))
    return frozenset(cpus)
