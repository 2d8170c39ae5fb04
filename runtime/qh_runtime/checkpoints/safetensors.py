"""One safetensors file: its header checked, then read-only mapped tensors. NumPy loads when read.

Files are never written here. One that is rewritten or cut short while it is mapped shows as changed
(`check_unchanged`) and harms nothing else; one that is deleted or replaced stays whole here.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qh_kernels.mapped_files import WatchedFile
from qh_runtime.checkpoints.files import open_regular
from qh_runtime.checkpoints.reader import TensorInfo, missing_tensor
from qh_runtime.checkpoints.safetensors_header import read_header
from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SafetensorsFile"]


class SafetensorsFile:
    """A checked, mapped safetensors file; a TensorSource.

    Args:
        path: the file; not a symbolic link.
        named: what errors call it: the file of the model, where a link led to `path`.

    Raises:
        CheckpointError: a rule is broken. Facts: path, rule, and tensor where one is to blame.
        TruncatedCheckpointError: shorter than the header says.
        UnsupportedTensorError: a tensor of a type that is not read.
    """

    def __init__(self, path: Path, named: Path | None = None) -> None:
        self._path, self._named = path, named or path
        with open_regular(path, named) as (file, size):
            # Asked for in the order of the file.
            header = read_header(lambda begin, end: file.read(end - begin), size, self._named)
            mapping = WatchedFile(file.fileno(), 0, access=mmap.ACCESS_READ)
            status = os.fstat(file.fileno())
        self._infos, self._offsets = header.tensors, header.offsets
        self.metadata: Mapping[str, str] = header.metadata
        self._identity = self._digest(header.digest, status)
        self._status = _state_of(status)
        self._data_start = header.data_start
        self._mapping: WatchedFile | None = mapping

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(self._infos))

    def info(self, name: str) -> TensorInfo:
        """See TensorSource."""
        if name not in self._infos:
            raise missing_tensor(name, quoted(self._named.name))
        return self._infos[name]

    def holds(self, name: str) -> bool:
        """See TensorSource."""
        return name in self

    def read(self, name: str) -> NDArray[Any]:
        """See TensorSource."""
        import numpy as np

        from qh_runtime.checkpoints.dtypes import DTYPES

        info = self.info(name)
        if self._mapping is None:
            raise CheckpointError(f"{quoted(self._named.name)}: read after close", tensor=name)
        self._mapping.watch()
        begin = self._data_start + self._offsets[name]
        raw = np.frombuffer(self._mapping, np.uint8, count=info.nbytes, offset=begin)
        return raw.view(DTYPES[info.dtype]).reshape(info.shape)

    def identity(self) -> str:
        """A digest of name, size, modification time and header; the data is not read."""
        return self._identity

    def check_unchanged(self) -> None:
        """See TensorSource. After `close` there is nothing to say."""
        mapping = self._mapping
        if mapping is None or not (mapping.is_lost or self._has_changed(mapping)):
            return
        raise CheckpointError(
            f"{quoted(self._named.name)}: expected the file that was opened, found it changed "
            "while in use",
            hint="load the model again once the file is complete",
            path=str(self._named),
            rule="changed",
        )

    def close(self) -> None:
        """Gives the mapping back as soon as no view is left."""
        self._mapping = None

    def _has_changed(self, mapping: WatchedFile) -> bool:
        """Whether the mapped file, not another of its name, has another size or was written to."""
        if mapping.size() != len(mapping):
            return True
        try:
            found = _state_of(os.stat(self._path))
        except OSError:
            return False
        same_file = found[:2] == self._status[:2]
        return same_file and found != self._status

    def _digest(self, header: bytes, status: os.stat_result) -> str:
        digest = hashlib.blake2b(digest_size=20)
        digest.update(header)
        digest.update(f"{self._path.name}\0{status.st_size}\0{status.st_mtime_ns}".encode())
        return digest.hexdigest()


def _state_of(status: os.stat_result) -> tuple[int, int, int, int]:
    """Which file it is (device, number), and what changes when it is written (size, time)."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
