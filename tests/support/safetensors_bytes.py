"""Safetensors files made byte by byte, and a corpus of broken ones: one entry per kind of lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["HOSTILE", "VALID", "entry", "file_bytes", "write_file"]


def file_bytes(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file of this header (JSON value, text or bytes) and data; `length` may lie."""
    if isinstance(header, bytes):
        raw = header
    elif isinstance(header, str):
        raw = header.encode()
    else:
        raw = json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write_file(path: Path, content: bytes) -> Path:
    """Write and return the path."""
    path.write_bytes(content)
    return path


def _one(**changes: Any) -> bytes:
    """A file with one (2, 2) float32 tensor "a", some fields of it changed."""
    return file_bytes({"a": {**entry([2, 2], 0, 16), **changes}}, bytes(16))


def _without(field: str) -> bytes:
    tensor = entry([2, 2], 0, 16)
    del tensor[field]
    return file_bytes({"a": tensor}, bytes(16))


def _named(name: str) -> bytes:
    return file_bytes({name: entry([1], 0, 4)}, bytes(4))


def _raw_one(text: str) -> bytes:
    """A file whose tensor entry is this text."""
    return file_bytes('{"a":' + text + "}", bytes(16))


_GOOD = '{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}'
_TWO = {"a": entry([2], 0, 8), "b": entry([2], 8, 16)}

# Kind -> (content, the rule that must be named).
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty file": (lambda: b"", "size"),
    "seven bytes": (lambda: bytes(7), "size"),
    "header length 0": (lambda: bytes(64), "header length"),
    "header length 1": (lambda: file_bytes(b"{", length=1), "header length"),
    "header length 2**63": (lambda: file_bytes({}, length=1 << 63), "header length"),
    "header length 2**64-1": (lambda: file_bytes({}, length=(1 << 64) - 1), "header length"),
    "header length above the limit": (
        lambda: file_bytes({}, length=(32 << 20) + 1),
        "header length",
    ),
    "header longer than the file": (lambda: file_bytes({}, length=1000), "size"),
    "header cut by one byte": (lambda: file_bytes({"a": entry([1], 0, 4)})[:-1], "size"),
    "space before the header": (lambda: file_bytes(" {}"), "header start"),
    "array as header": (lambda: file_bytes([]), "header start"),
    "byte order mark": (lambda: file_bytes("\ufeff{}"), "header start"),
    "not UTF-8": (lambda: file_bytes(b'{"\xff\xfe":1}'), "encoding"),
    "cut JSON": (lambda: file_bytes('{"a":'), "syntax"),
    "garbage after JSON": (lambda: file_bytes("{}x"), "syntax"),
    "two JSON objects": (lambda: file_bytes("{}{}"), "syntax"),
    "padded with NUL": (
        lambda: file_bytes('{"a":' + _GOOD + "}" + "\0" * 8, bytes(16)),
        "syntax",
    ),
    "comment in JSON": (lambda: _raw_one(_GOOD + "/*x*/"), "syntax"),
    "trailing comma": (lambda: _raw_one(_GOOD + ","), "syntax"),
    "single quotes": (lambda: file_bytes("{'a':1}"), "syntax"),
    "NaN": (lambda: _raw_one("NaN"), "number"),
    "Infinity as dimension": (lambda: _one(shape=[float("inf")]), "number"),
    "exponent that overflows": (lambda: _raw_one("1e999"), "number"),
    "integer of 5000 digits": (lambda: _raw_one("1" * 5000), "number"),
    "integer of 50 digits": (lambda: _raw_one("1" * 50), "number"),
    "the same tensor twice": (
        lambda: file_bytes('{"a":' + _GOOD + ',"a":' + _GOOD + "}", bytes(16)),
        "duplicate key",
    ),
    "the same tensor twice, once escaped": (
        lambda: file_bytes('{"a":' + _GOOD + ',"\\u0061":' + _GOOD + "}", bytes(16)),
        "duplicate key",
    ),
    "the same field twice": (
        lambda: _raw_one('{"dtype":"F32","dtype":"F16","shape":[2,2],"data_offsets":[0,16]}'),
        "duplicate key",
    ),
    "metadata twice": (
        lambda: file_bytes('{"__metadata__":{},"__metadata__":{},"a":' + _GOOD + "}", bytes(16)),
        "duplicate key",
    ),
    "metadata is a list": (
        lambda: file_bytes({"__metadata__": [], "a": entry([4], 0, 16)}, bytes(16)),
        "metadata",
    ),
    "metadata is null": (
        lambda: file_bytes({"__metadata__": None, "a": entry([4], 0, 16)}, bytes(16)),
        "metadata",
    ),
    "metadata holds a number": (
        lambda: file_bytes({"__metadata__": {"x": 1}, "a": entry([4], 0, 16)}, bytes(16)),
        "metadata",
    ),
    "metadata holds an object": (
        lambda: file_bytes({"__metadata__": {"x": {}}, "a": entry([4], 0, 16)}, bytes(16)),
        "metadata",
    ),
    "metadata with half a surrogate pair": (
        lambda: file_bytes('{"__metadata__":{"x":"\\ud800"},"a":' + _GOOD + "}", bytes(16)),
        "metadata",
    ),
    "no tensors": (lambda: file_bytes({}), "tensor count"),
    "only metadata": (lambda: file_bytes({"__metadata__": {}}), "tensor count"),
    "entry is a list": (lambda: file_bytes({"a": [1]}), "entry"),
    "entry is null": (lambda: file_bytes({"a": None}), "entry"),
    "entry is text": (lambda: file_bytes({"a": "F32"}), "entry"),
    "entry is a number": (lambda: file_bytes({"a": 4}), "entry"),
    "entry is empty": (lambda: file_bytes({"a": {}}), "entry"),
    "no dtype": (lambda: _without("dtype"), "entry"),
    "no shape": (lambda: _without("shape"), "entry"),
    "no offsets": (lambda: _without("data_offsets"), "entry"),
    "one field too many": (lambda: _one(strides=[2, 1]), "entry"),
    "unknown dtype": (lambda: _one(dtype="F33"), "dtype"),
    "dtype in lower case": (lambda: _one(dtype="f32"), "dtype"),
    "dtype with an escape sequence": (lambda: _one(dtype="\x1b[31mF32"), "dtype"),
    "dtype is null": (lambda: _one(dtype=None), "dtype"),
    "dtype is a list": (lambda: _one(dtype=["F32"]), "dtype"),
    "dtype is enormous": (lambda: _one(dtype="F" * 100_000), "dtype"),
    "sub-byte dtype": (lambda: _one(dtype="F4"), "dtype"),
    "shape is null": (lambda: _one(shape=None), "shape"),
    "shape is text": (lambda: _one(shape="22"), "shape"),
    "shape is an object": (lambda: _one(shape={"0": 4}), "shape"),
    "dimension is negative": (lambda: _one(shape=[-2, -2]), "shape"),
    "dimension is 0": (lambda: file_bytes({"a": entry([0], 0, 0)}), "shape"),
    "zero-size giant": (lambda: file_bytes({"a": entry([0, 1 << 60], 0, 0)}), "shape"),
    "dimension is a float": (lambda: _one(shape=[2.0, 2]), "shape"),
    "dimension is true": (lambda: _one(shape=[True, 4]), "shape"),
    "dimension is text": (lambda: _one(shape=["4"]), "shape"),
    "dimension is a list": (lambda: _one(shape=[[2, 2]]), "shape"),
    "dimension beyond the limit": (lambda: _one(shape=[(1 << 40) + 1]), "shape"),
    "product wraps 64 bits to 0": (lambda: _one(shape=[1 << 32, 1 << 32]), "offsets"),
    "product wraps 64 bits to the size": (
        lambda: _one(shape=[1 << 32, 1 << 30, 4], data_offsets=[0, 0]),
        "offsets",
    ),
    "nine dimensions": (lambda: _one(shape=[1] * 8 + [4]), "shape"),
    "a million dimensions": (lambda: _one(shape=[1] * 1_000_000), "header items"),
    "offsets are null": (lambda: _one(data_offsets=None), "offsets"),
    "one offset": (lambda: _one(data_offsets=[0]), "offsets"),
    "three offsets": (lambda: _one(data_offsets=[0, 16, 32]), "offsets"),
    "negative offset": (lambda: _one(data_offsets=[-16, 0]), "offsets"),
    "offsets reversed": (lambda: _one(data_offsets=[16, 0]), "offsets"),
    "offset is a float": (lambda: _one(data_offsets=[0.0, 16.0]), "offsets"),
    "offset is false": (lambda: _one(data_offsets=[False, 16]), "offsets"),
    "offset is 2**63": (lambda: _one(data_offsets=[1 << 63, (1 << 63) + 16]), "offsets"),
    "range smaller than the shape": (lambda: _one(data_offsets=[0, 12]), "offsets"),
    "range larger than the shape": (lambda: _one(shape=[2, 1]), "offsets"),
    "two tensors share their bytes": (
        lambda: file_bytes({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)),
        "offsets",
    ),
    "two tensors overlap": (
        lambda: file_bytes({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        "offsets",
    ),
    "hole between tensors": (
        lambda: file_bytes({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, bytes(20)),
        "offsets",
    ),
    "hole at the start": (lambda: file_bytes({"a": entry([2], 4, 12)}, bytes(12)), "offsets"),
    "one byte after the last tensor": (lambda: file_bytes(_TWO, bytes(17)), "trailing bytes"),
    "much after the last tensor": (lambda: file_bytes(_TWO, bytes(5000)), "trailing bytes"),
    "data cut by one byte": (lambda: file_bytes(_TWO, bytes(15)), "size"),
    "data missing": (lambda: file_bytes(_TWO), "size"),
    "tensor far outside the file": (
        lambda: file_bytes({"a": entry([1 << 40], 0, 1 << 42)}, bytes(16)),
        "size",
    ),
    "name is empty": (lambda: _named(""), "name"),
    "name with an escape sequence": (lambda: _named("a\x1b]0;title\x07"), "name"),
    "name with a line break": (lambda: _named("a\nb"), "name"),
    "name with NUL": (lambda: _named("a\0b"), "name"),
    "name with C1 control": (lambda: _named("a\x9bb"), "name"),
    "name with a direction override": (lambda: _named("a\u202eb"), "name"),
    "name with half a surrogate pair": (
        lambda: file_bytes('{"\\ud800":' + _GOOD + "}", bytes(16)),
        "name",
    ),
    "name of 513 bytes": (lambda: _named("a" * 513), "name"),
    "name of 2 MB": (lambda: _named("a" * 2_000_000), "header items"),
    "name like a path": (lambda: _named("../../etc/passwd"), "name"),
    "name like a Windows path": (lambda: _named("..\\x"), "name"),
    "200,000 empty tensors": (
        lambda: file_bytes({f"t{i}": entry([0], 0, 0) for i in range(200_000)}),
        "header items",
    ),
    "65,537 tensors": (
        lambda: file_bytes(
            {f"t{i}": entry([1], i, i + 1, "U8") for i in range(65_537)}, bytes(65_537)
        ),
        "tensor count",
    ),
    "lists 100,000 deep": (lambda: _raw_one("[" * 100_000 + "]" * 100_000), "depth"),
    "objects 60,000 deep": (lambda: _raw_one('{"a":' * 60_000 + "1" + "}" * 60_000), "depth"),
    "lists 100,000 deep, never closed": (lambda: _raw_one("[" * 100_000), "depth"),
    "2 million commas": (lambda: _raw_one("[" + "1," * 2_000_000 + "1]"), "header items"),
    "a megabyte of spaces inside": (lambda: _raw_one(" " * 2_000_000 + _GOOD), "header items"),
    "a pickle": (
        lambda: b"\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c\x08builtins" + bytes(64),
        "header length",
    ),
    "a zip": (lambda: b"PK\x03\x04\x14\0\0\0\x08\0" + bytes(64), "header length"),
    "a GGUF": (lambda: b"GGUF\x03\0\0\0" + bytes(64), "header length"),
    "an HTML page": (lambda: b"<!DOCTYPE html><html></html>", "header length"),
    "a Git LFS pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "header length",
    ),
}

# What the format allows and must be read.
VALID: dict[str, tuple[bytes, dict[str, tuple[str, tuple[int, ...]]]]] = {
    "one tensor": (_one(), {"a": ("F32", (2, 2))}),
    "header padded with spaces": (
        file_bytes('{"a":' + _GOOD + "}" + " " * 77, bytes(16)),
        {"a": ("F32", (2, 2))},
    ),
    "metadata": (
        file_bytes({"__metadata__": {"format": "pt"}, "a": entry([4], 0, 16)}, bytes(16)),
        {"a": ("F32", (4,))},
    ),
    "scalar": (file_bytes({"s": entry([], 0, 4)}, bytes(4)), {"s": ("F32", ())}),
    "listed against the order of data": (
        file_bytes({"b": entry([1], 4, 8), "a": entry([1], 0, 4)}, bytes(8)),
        {"a": ("F32", (1,)), "b": ("F32", (1,))},
    ),
    "data not aligned to its elements": (
        file_bytes({"c": entry([3], 0, 3, "U8"), "a": entry([2], 3, 11)}, bytes(11)),
        {"a": ("F32", (2,)), "c": ("U8", (3,))},
    ),
    "eight dimensions": (
        file_bytes({"a": entry([1] * 7 + [2], 0, 8)}, bytes(8)),
        {"a": ("F32", (1, 1, 1, 1, 1, 1, 1, 2))},
    ),
    "name of 512 bytes": (_named("é" * 256), {"é" * 256: ("F32", (1,))}),
}
