"""Whatever is done to a safetensors file, it is read consistently or refused clearly."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qh_runtime.checkpoints.safetensors import SafetensorsFile
from qh_runtime.errors import CheckpointError
from tests.support.figures import Record
from tests.support.safetensors_bytes import entry, file_bytes

_HEADER: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "model.norm.weight": entry([4], 0, 16),
    "model.layers.0.mlp.up_proj.weight": entry([3, 4], 16, 40, "BF16"),
    "model.layers.0.mlp.up_proj.weight_scale": entry([], 40, 42, "F16"),
    "codes": entry([2, 3], 42, 48, "U8"),
}
_DATA = bytes(range(48))
_SETTINGS = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Numbers where arithmetic goes wrong, and values of every other type.
_NUMBERS = st.one_of(
    st.integers(-2, 50),
    st.sampled_from(
        [1 << 31, 1 << 32, (1 << 32) + 1, 1 << 40, 1 << 62, 1 << 63, 1 << 64, -(1 << 63), 10**39]
    ),
)
_VALUES = st.one_of(
    _NUMBERS,
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    st.text(max_size=8),
    st.lists(_NUMBERS, max_size=9),
    st.dictionaries(st.text(max_size=3), _NUMBERS, max_size=2),
    st.sampled_from(["F32", "BF16", "F16", "U8", "I64", "F4", "BOOL", "F8_E4M3"]),
)


def opened(path: Path) -> tuple[SafetensorsFile | None, CheckpointError | None]:
    """The file, or why it was refused; any other exception passes through."""
    try:
        return SafetensorsFile(path), None
    except CheckpointError as error:
        return None, error


def check(content: bytes, path: Path, record: Record) -> None:
    """Read everything, or be refused in one printable line."""
    path.write_bytes(content)
    record("cases", 1)
    begin = time.perf_counter()
    file, refusal = opened(path)
    if file is None:
        record("reject_s", time.perf_counter() - begin)
        assert refusal is not None
        text = str(refusal)
        assert text.isprintable()
        assert text.isascii()
        assert path.name in text
        assert refusal.facts["path"] == str(path)
        assert refusal.facts["rule"]
        return
    header_bytes = 8 + int.from_bytes(content[:8], "little")
    covered = 0
    for name in file.names():
        assert name.isprintable()
        info = file.info(name)
        view = file.read(name)
        assert view.shape == info.shape
        assert view.nbytes == info.nbytes
        # Touches every byte: a view beyond the mapping would fault.
        covered += np.frombuffer(view.tobytes(), np.uint8).size
    assert covered == len(content) - header_bytes


@given(st.data())
@_SETTINGS
def test_structured_mutations(tmp_path: Path, record_property: Record, data: st.DataObject) -> None:
    header = copy.deepcopy(_HEADER)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(header)))
        tensor = header[name]
        action = data.draw(st.sampled_from(["field", "item", "rename", "drop", "replace", "add"]))
        if action == "field" and isinstance(tensor, dict) and tensor:
            tensor[data.draw(st.sampled_from(sorted(tensor)))] = data.draw(_VALUES)
        elif action == "item" and isinstance(tensor, dict):
            key = data.draw(st.sampled_from(["shape", "data_offsets"]))
            if isinstance(tensor.get(key), list) and tensor[key]:
                place = data.draw(st.integers(0, len(tensor[key]) - 1))
                tensor[key][place] = data.draw(_NUMBERS)
        elif action == "rename":
            header[data.draw(st.text(max_size=6))] = header.pop(name)
        elif action == "drop" and len(header) > 1:
            del header[name]
        elif action == "replace":
            header[name] = data.draw(_VALUES)
        elif action == "add":
            header[data.draw(st.text(max_size=4))] = entry(
                data.draw(st.lists(_NUMBERS, max_size=3)),
                data.draw(_NUMBERS),
                data.draw(_NUMBERS),
            )
    # Halves of surrogate pairs reach the file as escapes, as an attacker would write them.
    text = json.dumps(header)
    check(file_bytes(text, _DATA), tmp_path / "model.safetensors", record_property)


@given(
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    cut=st.integers(-64, 0),
    extra=st.binary(max_size=8),
)
@_SETTINGS
def test_byte_mutations(
    tmp_path: Path,
    record_property: Record,
    edits: list[tuple[int, int]],
    cut: int,
    extra: bytes,
) -> None:
    content = bytearray(file_bytes(_HEADER, _DATA))
    for place, value in edits:
        content[place % len(content)] = value
    end = len(content) + min(cut + 32, 0)
    check(bytes(content[:end]) + extra, tmp_path / "model.safetensors", record_property)


@given(content=st.binary(max_size=200))
@_SETTINGS
def test_arbitrary_bytes(tmp_path: Path, record_property: Record, content: bytes) -> None:
    check(content, tmp_path / "model.safetensors", record_property)


@pytest.mark.slow
@given(st.data())
@settings(parent=_SETTINGS, max_examples=10_000)
def test_many_structured_mutations(
    tmp_path: Path, record_property: Record, data: st.DataObject
) -> None:
    test_structured_mutations.hypothesis.inner_test(tmp_path, record_property, data)  # type: ignore[attr-defined]


def test_the_unchanged_file_is_read(tmp_path: Path, record_property: Record) -> None:
    path = tmp_path / "model.safetensors"
    check(file_bytes(_HEADER, _DATA), path, record_property)
    assert len(SafetensorsFile(path).names()) == 4
