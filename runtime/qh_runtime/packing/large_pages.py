"""Copies what is read for every token into memory with large pages.

A file is mapped in pages of 4 kB on most systems, and a kernel that reads a gigabyte in them waits
for page tables. A token of the 2B ternary shape took 28.3 ms from pages of 2 MB and 31.3 ms from
the mapped file on one core of an EPYC, 22.6 and 23.4 ms on two (interleaved, November 2026). The
copy takes 0.2 s a gigabyte, several times that where a virtual machine has to get the pages first,
so a session makes it beside an answer (`session/moving_weights.py`). It belongs to this process
alone, and the system cannot take it back as it can mapped pages: the plan decides whether there is
room.
"""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qh_kernels.decoder import DecoderWeights, LayerWeights, Matrix

__all__ = ["in_large_pages", "read_every_token"]

_PAGE_BYTES = 2 << 20
_ALIGNMENT = 64
# Copied at a time: some milliseconds, so that a stop is never far.
_STEP_BYTES = 32 << 20

Bytes = NDArray[np.uint8]


def read_every_token(weights: DecoderWeights) -> tuple[Matrix, ...]:
    """The matrices of which every byte is read for a token: linear layers, and head or its scan."""
    linears = [
        value
        for layer in weights.layers
        for value in vars(layer).values()
        if isinstance(value, Matrix)
    ]
    return (*linears, weights.head_scan or weights.head)


def in_large_pages(
    weights: DecoderWeights,
    threads: int = 1,
    on_bytes: Callable[[int, int], None] | None = None,
) -> DecoderWeights:
    """Return the weights with what is read for every token copied into one block of memory.

    Args:
        threads: that copy.
        on_bytes: told (done, total) between steps; what it raises ends the copying.

    Raises:
        MemoryError: the system refuses the block.
    """
    places: dict[int, Matrix] = {}
    for matrix in read_every_token(weights):
        places.setdefault(matrix.data.ctypes.data, matrix)
    sizes = [_round_up(matrix.data.nbytes, _ALIGNMENT) for matrix in places.values()]
    starts = [0, *itertools.accumulate(sizes)]
    block = _block(starts[-1])
    copies: dict[int, Matrix] = {}
    for (address, matrix), start in zip(places.items(), starts, strict=False):
        copies[address] = replace(matrix, data=block[start : start + matrix.data.nbytes])
    _copy(places, copies, threads, on_bytes)
    block.flags.writeable = False
    for matrix in copies.values():
        matrix.data.flags.writeable = False
    return _replaced(weights, copies)


def _copy(
    places: dict[int, Matrix],
    copies: dict[int, Matrix],
    threads: int,
    on_bytes: Callable[[int, int], None] | None,
) -> None:
    total = sum(matrix.data.nbytes for matrix in places.values())
    done = 0

    def steps() -> Iterator[tuple[Bytes, Bytes]]:
        for address, matrix in places.items():
            target = copies[address].data
            for begin in range(0, matrix.data.nbytes, _STEP_BYTES):
                end = begin + _STEP_BYTES
                yield target[begin:end], matrix.data[begin:end]

    def copy_one(step: tuple[Bytes, Bytes]) -> int:
        target, source = step
        np.copyto(target, source)
        return source.nbytes

    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="copy") as pool:
        waiting = [pool.submit(copy_one, step) for step in steps()]
        try:
            for one in waiting:
                done += one.result()
                if on_bytes is not None:
                    on_bytes(done, total)
        finally:
            for one in waiting:
                one.cancel()


def _block(nbytes: int) -> Bytes:
    """Writable memory that begins on a large page; in small ones where the system has no large."""
    size = _round_up(nbytes, _PAGE_BYTES) + _PAGE_BYTES
    # Without the flag it would be shared memory, which has small pages.
    private = {} if os.name == "nt" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    try:
        memory = mmap.mmap(-1, size, **private)
    except OSError as error:
        raise MemoryError(f"{size} bytes: {error.strerror}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    skip = -whole.ctypes.data % _PAGE_BYTES
    return whole[skip : skip + nbytes]


def _replaced(weights: DecoderWeights, copies: dict[int, Matrix]) -> DecoderWeights:
    def copied(matrix: Matrix) -> Matrix:
        return copies.get(matrix.data.ctypes.data, matrix)

    def copied_layer(layer: LayerWeights) -> LayerWeights:
        changes: dict[str, Any] = {x: copied(getattr(layer, x)) for x in _matrix_names(layer)}
        return replace(layer, **changes)

    layers = tuple(copied_layer(layer) for layer in weights.layers)
    scan = weights.head_scan
    # A tied head without a scan is read for every token, and so is the embedding that it is.
    return replace(
        weights,
        embedding=copied(weights.embedding),
        head=copied(weights.head),
        head_scan=None if scan is None else copied(scan),
        layers=layers,
    )


def _matrix_names(layer: LayerWeights) -> list[str]:
    return [x.name for x in fields(layer) if isinstance(getattr(layer, x.name), Matrix)]


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
