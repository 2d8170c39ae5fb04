"""Opening files: a file that changes meanwhile is noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qh_runtime.checkpoints.files import open_regular, read_small_file
from qh_runtime.errors import CheckpointError


def test_a_file_that_changes_while_it_is_open_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")

    def read_slowly() -> None:
        with open_regular(path) as (file, size):
            assert (file.read(), size) == (b"{}", 2)
            path.write_text('{"a": 1}')

    with pytest.raises(CheckpointError):
        read_slowly()


def test_a_file_that_grew_is_noticed_even_with_an_old_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    path.write_text("x" * 11)
    real = os.fstat

    def before_it_grew(descriptor: int) -> os.stat_result:
        values = list(real(descriptor))
        values[6] = 5
        return os.stat_result(values)

    monkeypatch.setattr(os, "fstat", before_it_grew)
    with pytest.raises(CheckpointError):
        read_small_file(path, 10)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_names_that_no_file_has(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error, open_regular(tmp_path / name):
        pass
    assert str(error.value).isprintable()
