"""The header of a safetensors file, checked strictly wherever its bytes come from.

Layout: u64 header length | JSON header | data; every rule of the format is checked before a single
array is made, in Python, where a lying length is an exception and nothing worse. Beyond the format:
no duplicate keys, no dimension of 0, printable names, bounded counts.

Source: the safetensors format description, Hugging Face.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from qh_runtime.checkpoints.reader import ITEM_BYTES, TensorInfo
from qh_runtime.checkpoints.strict_json import decode, is_text, parse_object, quoted
from qh_runtime.errors import CheckpointError, TruncatedCheckpointError, UnsupportedTensorError

__all__ = ["SafetensorsHeader", "read_header"]

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
# What lies under the name instead now and then, by its first bytes: (bytes, what it is, next step).
_OTHER_FILES = (
    (b"version ", "a Git LFS pointer, which only says where the weights are", "run git lfs pull"),
    (b"<!", "a web page", _HINT),
    (b"<html", "a web page", _HINT),
    (b"<?xml", "an answer of a web server", _HINT),
    (b"GGUF", "a GGUF file", "choose a checkpoint with safetensors files"),
    (
        b"PK\x03\x04",
        "a zip archive or a PyTorch file",
        "choose a checkpoint with safetensors files",
    ),
    (b"\x80", "a pickle", "choose a checkpoint with safetensors files"),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
)

# (begin, end) -> these bytes of the file; fewer where it is shorter.
ReadSpan = Callable[[int, int], bytes]


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a file says about its tensors, once they cover its data exactly.

    Attributes:
        tensors: name to type, shape and size.
        offsets: name to the first byte, counted from data_start.
        data_start: where the data begins in the file.
        metadata: strings that the writer left.
        digest: of the header's bytes.
    """

    tensors: Mapping[str, TensorInfo]
    offsets: Mapping[str, int]
    data_start: int
    metadata: Mapping[str, str]
    digest: bytes


def read_header(read: ReadSpan, size: int, path: Path) -> SafetensorsHeader:
    """Return the checked header of a file of this size, whose data is not touched.

    Args:
        read: called twice: for the length, then for the header.
        size: of the whole file in bytes.
        path: names the file in errors; it is not opened.

    Raises:
        CheckpointError: a rule is broken. Facts: path, rule, and tensor where one is to blame.
        TruncatedCheckpointError: shorter than the header says.
        UnsupportedTensorError: a tensor of a type that is not read.
    """
    return _HeaderCheck(path).run(read, size)


class _HeaderCheck:
    def __init__(self, path: Path) -> None:
        self._path = path

    def run(self, read: ReadSpan, size: int) -> SafetensorsHeader:
        header, data_start, digest = self._parse(read, size)
        tensors, offsets = self._check(header, data_start, size - data_start)
        metadata = header.get("__metadata__", {})
        return SafetensorsHeader(tensors, offsets, data_start, metadata, digest)

    def _fail(self, rule: str, message: str, hint: str = _HINT, **facts: Any) -> NoReturn:
        raise CheckpointError(
            f"{quoted(self._path.name)}: {message}",
            hint=hint,
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

    def _parse(self, read: ReadSpan, size: int) -> tuple[dict[str, Any], int, bytes]:
        """The parsed header, the offset of the data and the header's digest."""
        if size < 8:
            self._truncated(8, size)
        first = read(0, 8)
        if len(first) != 8:
            self._truncated(8, len(first))
        length = int.from_bytes(first, "little")
        if not 2 <= length <= MAX_HEADER_BYTES:
            for start, what, hint in _OTHER_FILES:
                if first.lower().startswith(start.lower()):
                    self._fail("header length", f"expected safetensors, found {what}", hint)
            self._fail(
                "header length",
                f"header length: expected 2..{MAX_HEADER_BYTES} bytes, found {length}",
            )
        if 8 + length > size:
            self._truncated(8 + length, size)
        raw = read(8, 8 + length)
        if len(raw) != length:
            self._truncated(8 + length, 8 + len(raw))
        if raw[:1] != b"{":
            self._fail("header start", f"header: expected '{{' first, found {quoted(raw[:1])}")
        braces = raw.count(b"{")
        if braces > MAX_BRACES or braces + raw.count(b",") + raw.count(b"[") > MAX_SEPARATORS:
            self._fail("header items", f"header: more than {MAX_SEPARATORS} items")
        if _LONG_STRING.search(raw):
            self._fail("header items", "header: more than 1048576 bytes without a quotation mark")
        digest = hashlib.blake2b(raw, digest_size=20).digest()
        where = f"{quoted(self._path.name)}: header"
        text = decode(raw, where, path=self._path)
        # Not kept while its parsed form grows.
        del raw
        return parse_object(text, where, path=self._path, max_depth=None), 8 + length, digest

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
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            raise UnsupportedTensorError(
                f"{quoted(self._path.name)}: {where}: dtype: expected one of "
                f"{', '.join(sorted(ITEM_BYTES))}, found {quoted(dtype)}",
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
        nbytes = ITEM_BYTES[dtype]
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
