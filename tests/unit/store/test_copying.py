"""Local files into the store: the same bytes, resumed, and never a copy of two versions."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from qh_runtime.errors import IntegrityError, StoreError
from qh_runtime.store.copying import copy_file
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.part import CHUNK_BYTES, Part, chunk_checks
from qh_runtime.store.transfer import StopSignal, TransferProgress

CONTENT = random.Random(4).randbytes(5 * CHUNK_BYTES + 77)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    return StoreLayout(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    return path


def copied(layout: StoreLayout) -> None:
    assert layout.blob(SHA256).read_bytes() == CONTENT
    assert chunk_checks(layout, SHA256, len(CONTENT)) is not None
    assert list(layout.parts.iterdir()) == []


@pytest.mark.parametrize("expected", [None, SHA256])
def test_the_same_bytes(layout: StoreLayout, source: Path, expected: str | None) -> None:
    reports: list[TransferProgress] = []
    assert copy_file(layout, source, expected, reports.append, StopSignal()) == SHA256
    copied(layout)
    assert source.read_bytes() == CONTENT
    assert (reports[-1].state, reports[-1].done_bytes) == ("done", len(CONTENT))
    assert {x.path for x in reports} == {source.name}


def test_an_empty_file(layout: StoreLayout, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    sha256 = hashlib.sha256(b"").hexdigest()
    assert copy_file(layout, empty, None, None, StopSignal()) == sha256
    assert layout.blob(sha256).read_bytes() == b""


def test_a_blob_that_is_there_is_not_copied(layout: StoreLayout, source: Path) -> None:
    copy_file(layout, source, SHA256, None, StopSignal())
    before = layout.blob(SHA256).stat()
    assert copy_file(layout, source, SHA256, None, StopSignal()) == SHA256
    assert layout.blob(SHA256).stat() == before


@pytest.mark.parametrize("expected", [None, SHA256])
def test_a_stopped_copy_goes_on(layout: StoreLayout, source: Path, expected: str | None) -> None:
    stop = StopSignal()

    def watch(report: TransferProgress) -> None:
        stop.stop()

    assert copy_file(layout, source, expected, watch, stop) is None
    (part,) = layout.parts.glob("*.part")
    # The source's bytes of a chunk that is there are not read again: the part has them.
    with open(part, "rb") as file:
        assert file.read(CHUNK_BYTES) == CONTENT[:CHUNK_BYTES]
    reports: list[TransferProgress] = []
    assert copy_file(layout, source, expected, reports.append, StopSignal()) == SHA256
    assert reports[0].done_bytes >= CHUNK_BYTES
    copied(layout)


def test_damage_in_the_part_is_copied_again(layout: StoreLayout, source: Path) -> None:
    part = Part(layout, SHA256, len(CONTENT))
    part.put(0, memoryview(CONTENT)[:CHUNK_BYTES])
    part.close()
    with open(layout.part(SHA256), "r+b") as file:
        file.write(b"rot")
    assert copy_file(layout, source, SHA256, None, StopSignal()) == SHA256
    copied(layout)


def test_bytes_of_an_earlier_source_are_not_mixed_in(layout: StoreLayout, source: Path) -> None:
    """A part with right CRCs under the expected hash, but of other bytes."""
    part = Part(layout, SHA256, len(CONTENT))
    part.put(0, memoryview(bytes(CHUNK_BYTES)))
    part.close()
    assert copy_file(layout, source, SHA256, None, StopSignal()) == SHA256
    copied(layout)


def test_a_source_that_changed_between_two_runs_starts_anew(
    layout: StoreLayout, source: Path
) -> None:
    stop = StopSignal()
    assert copy_file(layout, source, None, lambda _: stop.stop(), stop) is None
    status = source.stat()
    changed = bytes(10) + CONTENT[10:]
    source.write_bytes(changed)
    # The modification time may be set to anything.
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    sha256 = hashlib.sha256(changed).hexdigest()
    assert copy_file(layout, source, None, None, StopSignal()) == sha256
    assert layout.blob(sha256).read_bytes() == changed


@pytest.mark.parametrize("change", ["written", "shorter"])
def test_a_source_that_changes_meanwhile(layout: StoreLayout, source: Path, change: str) -> None:
    changed: list[int] = []

    def watch(report: TransferProgress) -> None:
        if not changed:
            changed.append(1)
            with open(source, "r+b") as file:
                if change == "written":
                    file.write(b"new")
                else:
                    file.truncate(3 * CHUNK_BYTES + 1)

    with pytest.raises(StoreError) as caught:
        copy_file(layout, source, None, watch, StopSignal())
    assert caught.value.facts["path"] == str(source)
    assert not layout.blobs.exists()
    assert list(layout.parts.iterdir()) == []


def test_a_wrong_hash(layout: StoreLayout, source: Path) -> None:
    with pytest.raises(IntegrityError) as caught:
        copy_file(layout, source, "0" * 64, None, StopSignal())
    assert caught.value.facts == {"path": str(source), "expected": "0" * 64, "found": SHA256}
    assert list(layout.parts.iterdir()) == []


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device"])
def test_sources_that_are_no_files(layout: StoreLayout, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    if kind == "folder":
        source.mkdir()
    elif kind == "pipe":
        os.mkfifo(source)
    elif kind == "device":
        source.symlink_to("/dev/zero")
    with pytest.raises(StoreError) as caught:
        copy_file(layout, source, None, None, StopSignal())
    assert caught.value.facts["path"] == str(source)


def test_no_room(layout: StoreLayout, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        f_bavail, f_frsize = 3, 4096

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    with pytest.raises(StoreError) as caught:
        copy_file(layout, source, None, None, StopSignal())
    assert caught.value.facts["free_bytes"] == 3 * 4096
    assert caught.value.facts["required_bytes"] == int(len(CONTENT) * 1.05)


def test_a_link_is_followed_to_its_file(layout: StoreLayout, source: Path, tmp_path: Path) -> None:
    """Caches of other programs keep models as links."""
    link = tmp_path / "link"
    link.symlink_to(source)
    assert copy_file(layout, link, None, None, StopSignal()) == SHA256
    copied(layout)
