"""One safetensors file: a strict header check, then read-only mapped tensors.

Layout: u64 header length | JSON header | data; every rule of the format is checked before a single
array is made, in Python, where a lying length is an exception and nothing worse. Beyond the format:
no duplicate keys, no dimension of 0, printable names, bounded counts. Files are never written here
and must not be rewritten in place while mapped (truncating a mapped file ends the process).

Source: the safetensors format description, Hugging Face.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from qh_runtime.checkpoints.files import open_regular
from qh_runtime.checkpoints.reader import DTYPES, TensorInfo, missing_tensor
from qh_runtime.checkpoints.strict_json import decode, is_text, parse_object, quoted
from qh_runtime.errors import CheckpointError, TruncatedCheckpointError, UnsupportedTensorError

__all__ = ["SafetensorsFile"]

MAX_HEADER_BYTES = 32 << 20
MAX_TENSORS = 65_536
MAX_NAME_BYTES = 512
MAX_DIMENSIONS = 8
MAX_DIMENSION = 1 << 40
# Commas, brackets and braces in a header, and braces alone: bounds what parsing it allocates. A
# full header of MAX_TENSORS matrices has about half as many.
MAX_SEPARATORS = 1 << 20
MAX_BRACES = 2 * MAX_TENSORS
# A name or a metadata value of a megabyte is no name and no metadata.
_LONG_STRING = re.compile(rb'"[^"]{1048576}')
_HINT = "download the file again"


class SafetensorsFile:
    """A checked, mapped safetensors file; a TensorSource.

    Args:
        path: the file; not a symbolic link.

    Raises:
        CheckpointError: a rule is broken. Facts: path, rule, and tensor where one is to blame.
        TruncatedCheckpointError: shorter than the header says.
        UnsupportedTensorError: a tensor of a type that is not read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with open_regular(path) as (file, size):
            header, data_start = self._read_header(file, size)
            self._infos, self._offsets = self._check(header, data_start, size - data_start)
            self.metadata: Mapping[str, str] = header.get("__metadata__", {})
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            changed = os.fstat(file.fileno())
        self._identity = self._digest(changed)
        self._data: NDArray[np.uint8] | None = np.frombuffer(mapping, np.uint8, offset=data_start)

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
            raise missing_tensor(name, quoted(self._path.name))
        return self._infos[name]

    def read(self, name: str) -> NDArray[Any]:
        """See TensorSource."""
        info = self.info(name)
        if self._data is None:
            raise CheckpointError(f"{quoted(self._path.name)}: read after close", tensor=name)
        begin = self._offsets[name]
        raw = self._data[begin : begin + info.nbytes]
        return raw.view(DTYPES[info.dtype]).reshape(info.shape)

    def identity(self) -> str:
        """A digest of name, size, modification time and header; the data is not read."""
        return self._identity

    def close(self) -> None:
        """Gives the mapping back as soon as no view is left."""
        self._data = None

    # The header.

    def _fail(self, rule: str, message: str, **facts: Any) -> NoReturn:
        raise CheckpointError(
            f"{quoted(self._path.name)}: {message}",
            hint=_HINT,
            path=str(self._path),
            rule=rule,
            **facts,
        )

    def _truncated(self, expected: int, found: int, **facts: Any) -> NoReturn:
        raise TruncatedCheckpointError(
            f"{quoted(self._path.name)}: expected {expected} bytes, found {found}",
            hint=_HINT,
            path=str(self._path),
            rule="size",
            expected_bytes=expected,
            found_bytes=found,
            **facts,
        )

    def _read_header(self, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
        """The parsed header and the offset of the data."""
        if size < 8:
            self._truncated(8, size)
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= MAX_HEADER_BYTES:
            self._fail(
                "header length",
                f"header length: expected 2..{MAX_HEADER_BYTES} bytes, found {length}",
            )
        if 8 + length > size:
            self._truncated(8 + length, size)
        raw = file.read(length)
        if len(raw) != length:
            self._truncated(8 + length, 8 + len(raw))
        if raw[:1] != b"{":
            self._fail("header start", f"header: expected '{{' first, found {quoted(raw[:1])}")
        braces = raw.count(b"{")
        if braces > MAX_BRACES or braces + raw.count(b",") + raw.count(b"[") > MAX_SEPARATORS:
            self._fail("header items", f"header: more than {MAX_SEPARATORS} items")
        if _LONG_STRING.search(raw):
            self._fail("header items", "header: more than 1048576 bytes without a quotation mark")
        self._header_digest = hashlib.blake2b(raw, digest_size=20).digest()
        where = f"{quoted(self._path.name)}: header"
        text = decode(raw, where, path=self._path)
        # Not kept while its parsed form grows.
        del raw
        return parse_object(text, where, path=self._path, max_depth=None), 8 + length

    def _check(
        self, header: dict[str, Any], data_start: int, data_bytes: int
    ) -> tuple[dict[str, TensorInfo], dict[str, int]]:
        """Infos and offsets of all tensors, once they cover the data exactly."""
        metadata = header.get("__metadata__", {})
        if not isinstance(metadata, dict) or not all(
            isinstance(value, str) and is_text(key) and is_text(value)
            for key, value in metadata.items()
        ):
            self._fail("metadata", "__metadata__: expected an object of strings")
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        if not 1 <= len(entries) <= MAX_TENSORS:
            self._fail("tensor count", f"expected 1..{MAX_TENSORS} tensors, found {len(entries)}")
        infos: dict[str, TensorInfo] = {}
        offsets: dict[str, int] = {}
        for name, entry in entries.items():
            infos[name], offsets[name] = self._tensor(name, entry)
        end = 0
        for name in sorted(offsets, key=offsets.__getitem__):
            begin = offsets[name]
            if begin != end:
                what = "overlaps the tensor before it" if begin < end else "leaves a hole before it"
                self._fail(
                    "offsets",
                    f"tensor {quoted(name)}: begins at {begin}, expected {end}: {what}",
                    tensor=name,
                )
            end = begin + infos[name].nbytes
            if end > data_bytes:
                self._truncated(data_start + end, data_start + data_bytes, tensor=name)
        if end != data_bytes:
            self._fail("trailing bytes", f"{data_bytes - end} bytes after the last tensor")
        return infos, offsets

    def _tensor(self, name: str, entry: object) -> tuple[TensorInfo, int]:
        """The checked info and begin offset of one header entry."""
        if (
            not 1 <= len(name) <= MAX_NAME_BYTES
            or not name.isprintable()  # nor is half a surrogate pair, which has no bytes
            or len(name.encode()) > MAX_NAME_BYTES
            or any(part in name for part in ("/", "\\", ".."))
        ):
            self._fail(
                "name",
                f"tensor name {quoted(name)}: expected 1..{MAX_NAME_BYTES} printable bytes, "
                "and nothing like a path",
                tensor=quoted(name),
            )
        where = f"tensor {quoted(name)}"
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            self._fail(
                "entry", f"{where}: expected dtype, shape and data_offsets, no more", tensor=name
            )
        dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise UnsupportedTensorError(
                f"{quoted(self._path.name)}: {where}: dtype: expected one of "
                f"{', '.join(sorted(DTYPES))}, found {quoted(dtype)}",
                hint="choose a checkpoint with one of these types",
                path=str(self._path),
                tensor=name,
                dtype=quoted(dtype),
                rule="dtype",
            )
        if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
            self._fail(
                "shape", f"{where}: shape: expected up to {MAX_DIMENSIONS} sizes", tensor=name
            )
        nbytes = DTYPES[dtype].itemsize
        for size in shape:
            if type(size) is not int or not 1 <= size <= MAX_DIMENSION:
                self._fail(
                    "shape",
                    f"{where}: dimension: expected 1..{MAX_DIMENSION}, found {quoted(size)}",
                    tensor=name,
                )
            nbytes *= size
        if (
            not isinstance(span, list)
            or len(span) != 2
            or not all(type(offset) is int and 0 <= offset < 1 << 62 for offset in span)
        ):
            self._fail(
                "offsets", f"{where}: data_offsets: expected two sizes in bytes", tensor=name
            )
        if span[1] - span[0] != nbytes:
            self._fail(
                "offsets",
                f"{where}: {dtype} {quoted(shape)} takes {nbytes} bytes, "
                f"found {span[1] - span[0]} in data_offsets",
                tensor=name,
            )
        return TensorInfo(name, dtype, tuple(shape), nbytes, self._path.name), span[0]

    def _digest(self, status: os.stat_result) -> str:
        digest = hashlib.blake2b(digest_size=20)
        digest.update(self._header_digest)
        digest.update(f"{self._path.name}\0{status.st_size}\0{status.st_mtime_ns}".encode())
        return digest.hexdigest()
