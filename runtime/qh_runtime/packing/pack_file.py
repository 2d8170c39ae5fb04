"""The file of packed matrices: a safetensors file that is written once and mapped from then on.

    <key>-<format>.safetensors  key: digest of source identity, layout, formats and pack version
    header metadata             qh_pack_version, qh_pack_key, qh_matrices (JSON), qh_samples; for
                                `du`: qh_source (identity of the source), qh_folder (where it was)
    tensors                     U8 (nbytes,), one per matrix; every tiled one begins at a multiple
                                of 64 bytes (their sizes are such, and dense ones come last)

A file appears under its name only when complete: temporary file, fsync, rename, fsync of the
folder, all under a lock. It is never changed afterwards; a file that fails its checks is replaced
by a new one, which leaves processes that still map the old one unharmed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qh_runtime.checkpoints.safetensors import SafetensorsFile
from qh_runtime.errors import CheckpointError, StoreError
from qh_runtime.packing.matrices import MatrixPlan

__all__ = [
    "FOLDER_KEY",
    "PACK_VERSION",
    "SOURCE_KEY",
    "PackFile",
    "PackWriter",
    "pack_key",
    "write_order",
]

# Raised whenever the bytes of any packed format change.
PACK_VERSION = 2
# What a pack was made from; not looked at when it is opened.
SOURCE_KEY = "qh_source"
FOLDER_KEY = "qh_folder"
# The data begins on a page of its own.
_DATA_ALIGNMENT = 4096
# Sampled checksum: so many windows of so many bytes per tensor.
_WINDOWS = 4
_WINDOW_BYTES = 4096
# Kept free beyond the file itself.
_SPARE_BYTES = 64 << 20

Buffer = NDArray[np.uint8]


def write_order(matrices: Sequence[MatrixPlan]) -> tuple[MatrixPlan, ...]:
    """The repacked matrices in file order: those of a size divisible by 64 first."""
    repacked = [matrix for matrix in matrices if matrix.repacked]
    return tuple(sorted(repacked, key=lambda matrix: matrix.nbytes % 64 != 0))


def pack_key(source_identity: str, layout_key: str, matrices: Sequence[MatrixPlan]) -> str:
    """Hex digest that names a pack: equal keys mean equal content."""
    text = json.dumps([PACK_VERSION, source_identity, layout_key, _described(matrices)])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class PackFile:
    """A mapped pack, checked against what it should be.

    Args:
        path: the file.
        key: the key that it must carry.
        matrices: in file order.

    Raises:
        CheckpointError: it is not that pack, or is damaged where it was sampled. Facts: path, rule.
    """

    def __init__(self, path: Path, key: str, matrices: Sequence[MatrixPlan]) -> None:
        self._file = SafetensorsFile(path)
        expected = {
            "qh_pack_version": str(PACK_VERSION),
            "qh_pack_key": key,
            "qh_matrices": json.dumps(_described(matrices)),
        }
        for field, value in expected.items():
            if self._file.metadata.get(field) != value:
                raise self._stale(field)
        if set(self._file.names()) != {matrix.name for matrix in matrices}:
            raise self._stale("tensor names")
        for matrix in matrices:
            info = self._file.info(matrix.name)
            if info.dtype != "U8" or info.shape != (matrix.nbytes,):
                raise self._stale("tensor size")
        buffers = [self.buffer(matrix.name) for matrix in matrices]
        if self._file.metadata.get("qh_samples") != sample_digest(buffers):
            raise self._stale("content")

    def buffer(self, name: str) -> Buffer:
        """The packed bytes of a matrix, mapped read-only."""
        return self._file.read(name)

    def check_unchanged(self) -> None:
        """As TensorSource's."""
        self._file.check_unchanged()

    def _stale(self, rule: str) -> CheckpointError:
        return CheckpointError(
            f"{self._file.path.name}: {rule} is not what this pack should have",
            hint="it is made again",
            path=str(self._file.path),
            rule=rule,
        )


class PackWriter:
    """Writes a pack: `write` parts in any order from any thread, then `commit`, or `abandon`.

    Args:
        path: the final name; the temporary file lies beside it.
        about: further metadata.

    Raises:
        StoreError: too little space, or the file cannot be written. Facts: path, and
            required_bytes and free_bytes where space is missing.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        matrices: Sequence[MatrixPlan],
        about: Mapping[str, str] | None = None,
    ) -> None:
        self._path, self._key, self._matrices = path, key, matrices
        self._about = dict(about or {})
        self._header = self._render("0" * 32)
        self._starts: dict[str, int] = {}
        start = len(self._header)
        for matrix in matrices:
            self._starts[matrix.name] = start
            start += matrix.nbytes
        self._size = start
        self._check_space()
        for stale in path.parent.glob(f".{path.name}.*.part"):
            # The lock is held, so nobody else is writing them: they are from killed processes.
            stale.unlink(missing_ok=True)
        self._part = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
        try:
            self._descriptor = os.open(
                self._part,
                os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0),
                0o644,
            )
        except OSError as error:
            raise self._failed(error) from error
        try:
            _take_space(self._descriptor, self._size)
        except OSError as error:
            self.abandon()
            raise self._failed(error) from error

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Put packed bytes of a matrix at an offset in it."""
        view = data.data
        position = self._starts[name] + offset
        try:
            while view:
                written = os.pwrite(self._descriptor, view, position)
                view, position = view[written:], position + written
        except OSError as error:
            raise self._failed(error) from error

    def commit(self) -> None:
        """Add checksums, make everything durable and let the file appear under its name."""
        try:
            mapped = np.memmap(self._part, np.uint8, mode="r")
            buffers = [
                np.asarray(mapped[self._starts[m.name] : self._starts[m.name] + m.nbytes])
                for m in self._matrices
            ]
            header = self._render(sample_digest(buffers))
            assert len(header) == len(self._header)
            os.pwrite(self._descriptor, header, 0)
            os.fsync(self._descriptor)
            os.replace(self._part, self._path)
            _sync_folder(self._path.parent)
        except OSError as error:
            self.abandon()
            raise self._failed(error) from error
        os.close(self._descriptor)

    def abandon(self) -> None:
        """Remove what was written so far."""
        os.close(self._descriptor)
        self._part.unlink(missing_ok=True)

    def _render(self, samples: str) -> bytes:
        header: dict[str, object] = {
            "__metadata__": {
                **self._about,
                "qh_pack_version": str(PACK_VERSION),
                "qh_pack_key": self._key,
                "qh_matrices": json.dumps(_described(self._matrices)),
                "qh_samples": samples,
            }
        }
        begin = 0
        for matrix in self._matrices:
            end = begin + matrix.nbytes
            header[matrix.name] = {
                "dtype": "U8",
                "shape": [matrix.nbytes],
                "data_offsets": [begin, end],
            }
            begin = end
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % _DATA_ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    def _check_space(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._path.parent).free
        except OSError as error:
            raise self._failed(error) from error
        if free < self._size + _SPARE_BYTES:
            raise StoreError(
                f"{self._path.parent.name}: packed weights need {self._size + _SPARE_BYTES} bytes "
                f"on this disk, {free} are free",
                hint="free some space, or go on without keeping the packed weights",
                path=str(self._path),
                required_bytes=self._size + _SPARE_BYTES,
                free_bytes=free,
            )

    def _failed(self, error: OSError) -> StoreError:
        return StoreError(
            f"{self._path.name}: packed weights cannot be written: {error.strerror}",
            hint="check space and permissions, or go on without keeping the packed weights",
            path=str(self._path),
            reason=error.strerror,
            required_bytes=self._size,
        )


def sample_digest(buffers: Sequence[Buffer]) -> str:
    """Hex digest of a few windows of each buffer: first, last and evenly between."""
    digest = hashlib.blake2b(digest_size=16)
    for buffer in buffers:
        last = max(0, buffer.nbytes - _WINDOW_BYTES)
        for i in range(_WINDOWS):
            begin = last * i // (_WINDOWS - 1)
            digest.update(buffer[begin : begin + _WINDOW_BYTES].data)
    return digest.hexdigest()


def _described(matrices: Sequence[MatrixPlan]) -> list[list[object]]:
    return [[matrix.name, matrix.format, matrix.rows, matrix.cols] for matrix in matrices]


def _take_space(descriptor: int, size: int) -> None:
    """Reserve the bytes now: a full disk is found before the work, not at its end."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            # Some file systems cannot reserve; on those the writes themselves may fail.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    os.ftruncate(descriptor, size)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
