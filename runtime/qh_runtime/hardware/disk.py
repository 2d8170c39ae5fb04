"""Free space where models and packed weights are kept."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from qh_runtime.hardware.facts import Fact

__all__ = ["DiskFacts", "read_disk"]


@dataclass(frozen=True)
class DiskFacts:
    """The file system that holds a folder. free_bytes: what this user may still write."""

    path: str
    total_bytes: int
    free_bytes: int


def read_disk(folder: Path) -> Fact[DiskFacts]:
    """Return the space below folder, which need not exist yet."""
    at = folder.absolute()
    while not at.exists() and at != at.parent:
        at = at.parent
    try:
        usage = shutil.disk_usage(at)
    except OSError as error:
        return Fact(None, f"{at}: {error.strerror}")
    return Fact(DiskFacts(str(folder), usage.total, usage.free), f"statvfs {at}")
