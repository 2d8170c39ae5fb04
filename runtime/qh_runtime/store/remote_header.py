"""RemoteTensors: the tensors of weight files that are still on a hub, known by their headers.

Headers are fetched as ranges and checked by the rules that files are checked by. Of the data only
scalars can be read (a layout looks at the scale of a ternary layer); those of a file are fetched
together, in few ranges, when the first one is asked for.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qh_runtime.checkpoints.reader import TensorInfo, missing_tensor
from qh_runtime.checkpoints.safetensors_header import SafetensorsHeader, read_header
from qh_runtime.checkpoints.shard_index import INDEX, check_shards
from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import CheckpointError
from qh_runtime.store.artifacts import ArtifactFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ReadRange", "RemoteTensors"]

# (file, begin, end) -> these bytes.
ReadRange = Callable[[ArtifactFile, int, int], bytes]

# Read first, because most headers are shorter, and a request takes longer than these bytes.
_FIRST_BYTES = 128 << 10
# Of all shards together: a thousand shards of the largest legal header are an attack.
MAX_HEADERS_BYTES = 128 << 20
_MAX_THREADS = 4
# What counts as a scalar, and how scalars are fetched: gaps that are read through, the longest
# range, and the most bytes for one file.
_SCALAR_BYTES = 16
_GAP_BYTES = 64 << 10
_RANGE_BYTES = 4 << 20
MAX_SCALARS_BYTES = 64 << 20
_MAX_RANGES = 4096


class RemoteTensors:
    """A TensorSource over headers; `read` gives scalars only.

    Args:
        files: all weight files of a model, by their names in the store.
        shard_of: of the index, None for a single file.
        read: fetches a range; whatever it raises comes out of here.

    Raises:
        CheckpointError: a broken rule. Facts: path, rule, and tensor or shard.
    """

    def __init__(
        self, files: Sequence[ArtifactFile], shard_of: Mapping[str, str] | None, read: ReadRange
    ) -> None:
        self._files = {x.path: x for x in files}
        self._read = read
        self._scalars: dict[str, dict[str, bytes]] = {}
        budget = _Budget()
        with ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="headers") as pool:
            found = [pool.submit(_header, file, read, budget) for file in files]
            try:
                self._headers = {
                    file.path: x.result() for file, x in zip(files, found, strict=True)
                }
            finally:
                for x in found:
                    x.cancel()
        if shard_of is not None:
            names = {path: header.tensors for path, header in self._headers.items()}
            check_shards(shard_of, names, Path(INDEX))
        self._file_of = {
            name: path for path, header in self._headers.items() for name in header.tensors
        }

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(self._file_of))

    def info(self, name: str) -> TensorInfo:
        """See TensorSource."""
        if name not in self._file_of:
            raise missing_tensor(name, "the weights")
        return self._headers[self._file_of[name]].tensors[name]

    def holds(self, name: str) -> bool:
        """See TensorSource."""
        return name in self._file_of and self.info(name).nbytes <= _SCALAR_BYTES

    def read(self, name: str) -> NDArray[Any]:
        """The value of a scalar.

        Raises:
            CheckpointError: no such tensor, or one that is not fetched yet. Facts: tensor.
        """
        import numpy as np

        from qh_runtime.checkpoints.dtypes import DTYPES

        info = self.info(name)
        if info.nbytes > _SCALAR_BYTES:
            raise CheckpointError(
                f"{quoted(name)}: its {info.nbytes} bytes are not fetched yet", tensor=name
            )
        path = self._file_of[name]
        if path not in self._scalars:
            self._scalars[path] = self._fetch_scalars(path)
        raw = np.frombuffer(self._scalars[path][name], np.uint8)
        return raw.view(DTYPES[info.dtype]).reshape(info.shape)

    def identity(self) -> str:
        """A digest of the files' hashes and headers."""
        digest = hashlib.blake2b(digest_size=20)
        for path, header in sorted(self._headers.items()):
            digest.update(f"{path}\0{self._files[path].remote.key}\0".encode() + header.digest)
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Nothing is open that could change; the pinned commit does not."""

    def close(self) -> None:
        """Nothing is open."""

    def _fetch_scalars(self, path: str) -> dict[str, bytes]:
        """All scalars of a file."""
        header, file = self._headers[path], self._files[path]
        wanted = sorted(
            (header.data_start + header.offsets[name], info.nbytes, name)
            for name, info in header.tensors.items()
            if info.nbytes <= _SCALAR_BYTES
        )
        ranges = list(_ranges(wanted))
        total = sum(end - begin for begin, end in ranges)
        if len(ranges) > _MAX_RANGES or total > MAX_SCALARS_BYTES:
            raise CheckpointError(
                f"{quoted(path)}: scalars in {len(ranges)} places: expected at most {_MAX_RANGES}",
                hint="no known program writes such a file; use another copy of the model",
                path=path,
                rule="scalars",
            )
        with ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="scalars") as pool:
            pieces = list(pool.map(lambda span: self._read(file, *span), ranges))
        found: dict[str, bytes] = {}
        at = 0
        for begin, nbytes, name in wanted:
            while begin >= ranges[at][1]:
                at += 1
            start = begin - ranges[at][0]
            found[name] = pieces[at][start : start + nbytes]
        return found


class _Budget:
    """Bytes of headers that may still be fetched."""

    def __init__(self) -> None:
        self._left = MAX_HEADERS_BYTES
        self._lock = threading.Lock()

    def take(self, file: ArtifactFile, count: int) -> None:
        with self._lock:
            self._left -= count
            if self._left < 0:
                raise CheckpointError(
                    f"{quoted(file.path)}: headers of all shards: expected at most "
                    f"{MAX_HEADERS_BYTES} bytes, found more",
                    hint="use another copy of the model",
                    path=file.path,
                    rule="header length",
                )


def _header(file: ArtifactFile, read: ReadRange, budget: _Budget) -> SafetensorsHeader:
    size = file.remote.size
    first = read(file, 0, min(size, _FIRST_BYTES)) if size else b""

    def span(begin: int, end: int) -> bytes:
        if end <= len(first):
            return first[begin:end]
        budget.take(file, end - len(first))
        return first[begin:] + read(file, len(first), end)

    budget.take(file, len(first))
    return read_header(span, size, Path(file.path))


def _ranges(wanted: Sequence[tuple[int, int, str]]) -> Iterator[tuple[int, int]]:
    """Ranges that cover the wanted (begin, bytes, _), which are sorted and apart."""
    begin = end = -1
    for start, nbytes, _ in wanted:
        if begin >= 0 and start - end <= _GAP_BYTES and start + nbytes - begin <= _RANGE_BYTES:
            end = start + nbytes
            continue
        if begin >= 0:
            yield begin, end
        begin, end = start, start + nbytes
    if begin >= 0:
        yield begin, end
