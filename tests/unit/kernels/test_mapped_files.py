"""Files that are cut short while they are mapped: zeros, no dead process, and it is known."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qh_kernels.cpu import unpack_row
from qh_kernels.decoder import Matrix
from qh_kernels.mapped_files import WatchedFile, lost_files

PAGE = mmap.PAGESIZE


def file_of(path: Path, pages: int) -> Path:
    path.write_bytes(b"\x01" * (PAGE * pages))
    return path


def mapped(path: Path, *, watch: bool = True) -> WatchedFile:
    with path.open("rb") as file:
        found = WatchedFile(file.fileno(), 0, access=mmap.ACCESS_READ)
    if watch:
        found.watch()
        found.watch()
    return found


def test_a_whole_file_is_read_and_not_lost(tmp_path: Path) -> None:
    before = lost_files()
    found = mapped(file_of(tmp_path / "a", 3))
    assert np.frombuffer(found, np.uint8).sum() == 3 * PAGE
    assert not found.is_lost
    assert lost_files() == before


@pytest.mark.parametrize("left", [0, 1, PAGE, 2 * PAGE + 5])
def test_what_a_cut_file_lacks_reads_as_zeros(tmp_path: Path, left: int) -> None:
    path = file_of(tmp_path / "a", 8)
    found = mapped(path)
    view = np.frombuffer(found, np.uint8)
    before = lost_files()
    os.truncate(path, left)
    # From the end to the start: every page faults behind the ones that were replaced already.
    counts = [int(view[page * PAGE : (page + 1) * PAGE].sum()) for page in reversed(range(8))]
    assert sum(counts) == left
    assert found.is_lost
    assert lost_files() > before


def test_a_longer_file_of_the_same_name_changes_nothing(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a", 2)
    found = mapped(path)
    path.unlink()
    file_of(path, 1)
    assert np.frombuffer(found, np.uint8).sum() == 2 * PAGE
    assert not found.is_lost


def test_only_the_cut_file_is_lost(tmp_path: Path) -> None:
    paths = [file_of(tmp_path / str(number), 2) for number in range(3)]
    files = [mapped(path) for path in paths]
    os.truncate(paths[1], 0)
    assert [int(np.frombuffer(x, np.uint8).sum()) for x in files] == [2 * PAGE, 0, 2 * PAGE]
    assert [x.is_lost for x in files] == [False, True, False]


def test_the_watch_ends_with_the_last_view(tmp_path: Path) -> None:
    """More files than there is room for, one after the other, are all watched."""
    path = file_of(tmp_path / "a", 1)
    for _ in range(5000):
        found = mapped(path)
        view = np.frombuffer(found, np.uint8)
        assert found._number >= 0
        del found, view
    first, second = mapped(path), mapped(path)
    number = first._number
    assert number != second._number
    view = np.frombuffer(first, np.uint8)
    del first
    assert mapped(path)._number != number, "the view still needs it"
    del view
    assert mapped(path)._number == number


def test_a_kernel_reads_zeros_too(tmp_path: Path) -> None:
    path = tmp_path / "row"
    np.ones(2 * PAGE, np.float32).tofile(path)
    found = mapped(path)
    data = np.frombuffer(found, np.uint8)
    os.truncate(path, PAGE)
    row = unpack_row(Matrix("f32", data, 1, 2 * PAGE), 0)
    assert row[: PAGE // 4].tolist() == [1.0] * (PAGE // 4)
    assert not row[PAGE:].any()
    assert found.is_lost


_UNWATCHED = """
import faulthandler, mmap, os, sys
{before}
from qh_kernels.mapped_files import WatchedFile
def mapped(path):
    with open(path, "rb") as file:
        return WatchedFile(file.fileno(), 0, access=mmap.ACCESS_READ)
good, bad = (mapped(path) for path in sys.argv[1:])
good.watch()
os.truncate(sys.argv[1], 0)
assert good[10] == 0
os.truncate(sys.argv[2], 0)
bad[10]
"""


@pytest.mark.parametrize("before", ["", "faulthandler.enable()"])
def test_a_file_that_nobody_watches_ends_the_process_as_ever(tmp_path: Path, before: str) -> None:
    paths = [str(file_of(tmp_path / name, 2)) for name in ("good", "bad")]
    done = subprocess.run(
        [sys.executable, "-c", _UNWATCHED.format(before=before), *paths],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
        check=False,
    )
    assert done.returncode == -7, done.stderr
    assert (b"Bus error" in done.stderr) == bool(before)


_ENDS_WITH_A_FILE = """
import mmap, sys

from qh_kernels.mapped_files import WatchedFile

with open(sys.argv[1], "rb") as file:
    found = WatchedFile(file.fileno(), 0, access=mmap.ACCESS_READ)
found.watch()
sys.modules["holds it until the modules are gone"] = found
"""


def test_a_process_that_ends_with_a_watched_file_says_nothing(tmp_path: Path) -> None:
    """Nothing can be imported any more when the last view goes."""
    path = file_of(tmp_path / "a", 1)
    done = subprocess.run(
        [sys.executable, "-c", _ENDS_WITH_A_FILE, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(x for x in sys.path if x)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
