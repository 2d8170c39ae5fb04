"""Records of passed checks: found again for the same key, and never where anything is off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qh_runtime.first_load.record import (
    Provenance,
    Record,
    find_record,
    keep_record,
    kernels_identity,
    read_provenance,
    record_key,
)

KEY = record_key(("a", 1))
RECORD = Record("avx2", ("one note", "zwei \u00e4"))
OF = Provenance("an identity", "/a/f\udc80lder", "a build")


def path_of(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_what_was_kept_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cache"
    assert find_record(folder, KEY) is None
    keep_record(folder, KEY, RECORD, OF)
    assert find_record(folder, KEY) == RECORD
    keep_record(folder, KEY, Record("scalar", ()), OF)
    assert find_record(folder, KEY) == Record("scalar", ())
    assert [x.name for x in folder.iterdir()] == [f"{KEY}.self-test.json"]


def test_other_parts_have_another_key(tmp_path: Path) -> None:
    keys = {record_key(x) for x in (("a", 1), ("a", "1"), ("a", 1.0), ("a1",), ("a", 1, None))}
    assert len(keys) == 5
    keep_record(tmp_path, KEY, RECORD, OF)
    assert find_record(tmp_path, record_key(("a", 2))) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[" * 100_000,
        '{"version": 2}',
        '"\\ud800"',
        " " * (1 << 17),
    ],
)
def test_what_cannot_be_read_is_no_record(tmp_path: Path, text: str) -> None:
    keep_record(tmp_path, KEY, RECORD, OF)
    path_of(tmp_path).write_text(text)
    assert find_record(tmp_path, KEY) is None


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"version": 3},
        {"key": record_key(("b",))},
        {"isa": None},
        {"isa": 5},
        {"notes": None},
        {"notes": "note"},
        {"notes": [1]},
        {"notes": ["x"] * 17},
        {"notes": ["x" * 1001]},
    ],
)
def test_what_says_something_else_is_no_record(tmp_path: Path, change: dict[str, object]) -> None:
    keep_record(tmp_path, KEY, RECORD, OF)
    path = path_of(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert find_record(tmp_path, KEY) is None


def test_bytes_that_are_no_text_are_no_record(tmp_path: Path) -> None:
    keep_record(tmp_path, KEY, RECORD, OF)
    path_of(tmp_path).write_bytes(b"\xff\xfe\x00")
    assert find_record(tmp_path, KEY) is None


def test_a_folder_that_cannot_be_written_keeps_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    keep_record(tmp_path / "file", KEY, RECORD, OF)
    assert "not kept" in caplog.text
    assert find_record(tmp_path / "file", KEY) is None


def test_a_failed_rename_leaves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / f"{KEY}.self-test.json").mkdir()
    keep_record(tmp_path, KEY, RECORD, OF)
    assert "not kept" in caplog.text
    assert [x.name for x in tmp_path.iterdir()] == [f"{KEY}.self-test.json"]


def test_it_says_of_what_it_is(tmp_path: Path) -> None:
    keep_record(tmp_path, KEY, RECORD, OF)
    path = path_of(tmp_path)
    assert read_provenance(path) == OF
    data = json.loads(path.read_text())
    for change in ({"version": 1}, {"source": None}, {"folder": 1}, {"kernels": []}):
        path.write_text(json.dumps(data | change))
        assert read_provenance(path) is None
    path.write_text("[]")
    assert read_provenance(path) is None


def test_the_kernels_have_one_identity() -> None:
    assert kernels_identity() == kernels_identity()
    assert "isas" in kernels_identity()
