"""Gives back the memory of a mapped tensor that was read once and is not needed any more.

The pages stay in the system's file cache as long as there is room; they only stop counting as this
process's. Without it a checkpoint would stand in memory beside the pack that is made from it.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["release_pages"]


def release_pages(array: NDArray[Any]) -> None:
    """Let go of the whole pages of a contiguous array in a read-only mapped file.

    They are read again from the file if somebody asks. Does nothing for other arrays, and where the
    system cannot be told.
    """
    mapping = _mapping_of(array)
    if mapping is None or not hasattr(mapping, "madvise") or not array.flags.c_contiguous:
        return
    whole = np.frombuffer(mapping, np.uint8)
    if whole.flags.writeable:
        # What was written to a private mapping would be lost.
        return
    start = array.ctypes.data - whole.ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        mapping.madvise(mmap.MADV_DONTNEED, first, last - first)


def _mapping_of(array: NDArray[Any]) -> mmap.mmap | None:
    """The mapped file that an array is a view of, if it is one."""
    base: object = array
    while True:
        if isinstance(base, np.ndarray):
            base = base.base
        elif isinstance(base, memoryview):
            base = base.obj
        else:
            return base if isinstance(base, mmap.mmap) else None
