"""Numbers in words."""

from __future__ import annotations

__all__ = ["gigabytes"]


def gigabytes(count: int) -> str:
    """Return bytes in words with three significant digits: "1.23 GB", "45.6 MB"; powers of ten."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            value = count / size
            digits = 2 if value < 10 else 1 if value < 100 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{count} B"
