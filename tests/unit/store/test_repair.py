"""Damaged blobs: what is sound is kept, the rest fetched, and a sound one left alone."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from qh_runtime.errors import DownloadError, IntegrityError, StoreError
from qh_runtime.store.download import fetch_file
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.part import CHUNK_BYTES, chunk_checks
from qh_runtime.store.repair import repair_blob
from qh_runtime.store.transfer import FetchOptions, OnTransfer, RemoteFile, StopSignal
from tests.support.payload_server import Fault, PayloadServer

SIZE = 6 * CHUNK_BYTES + 500
CONTENT = random.Random(9).randbytes(SIZE)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OPTIONS = FetchOptions(retry_delay_s=0.01, tries=2)


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    """A store with the sound blob."""
    layout = StoreLayout(tmp_path)
    with PayloadServer({"file": CONTENT}) as server:
        file = server.remote_file("file", sha256=SHA256)
        fetch_file(layout, file, OPTIONS, None, StopSignal())
    return layout


def damage(layout: StoreLayout, change: Callable[[bytearray], None]) -> None:
    blob = layout.blob(SHA256)
    data = bytearray(blob.read_bytes())
    change(data)
    os.chmod(blob, 0o644)
    blob.write_bytes(data)


def repair(
    layout: StoreLayout, on_progress: OnTransfer | None = None, stop: StopSignal | None = None
) -> int:
    """Repair from a server that works; returns the bytes it sent."""
    with PayloadServer({"file": CONTENT}) as server:
        file = server.remote_file("file", sha256=SHA256)
        found = repair_blob(layout, file, SHA256, OPTIONS, on_progress, stop or StopSignal())
        assert found == SHA256
        sound(layout)
        return server.sent_bytes


def sound(layout: StoreLayout) -> None:
    blob = layout.blob(SHA256)
    assert blob.read_bytes() == CONTENT
    assert blob.stat().st_mode & 0o777 == 0o444
    assert chunk_checks(layout, SHA256, SIZE) is not None
    assert list(layout.parts.iterdir()) == []
    assert len(list(layout.blobs.iterdir())) == 2


def flip(data: bytearray) -> None:
    data[3 * CHUNK_BYTES + 17] ^= 4


def zero_two(data: bytearray) -> None:
    data[CHUNK_BYTES - 10 : CHUNK_BYTES + 10] = bytes(20)


def truncate(data: bytearray) -> None:
    del data[4 * CHUNK_BYTES + 7 :]


def extend(data: bytearray) -> None:
    data += b"more"


def zero_all(data: bytearray) -> None:
    data[:] = bytes(len(data))


@pytest.mark.parametrize(
    ("change", "fetched"),
    [
        (flip, CHUNK_BYTES),
        (zero_two, 2 * CHUNK_BYTES),
        (truncate, 2 * CHUNK_BYTES + 500),
        (zero_all, SIZE),
    ],
)
def test_only_the_bad_mib_are_fetched(
    layout: StoreLayout, change: Callable[[bytearray], None], fetched: int
) -> None:
    damage(layout, change)
    assert repair(layout) == fetched


def test_a_blob_with_bytes_after_its_end(layout: StoreLayout) -> None:
    damage(layout, extend)
    assert repair(layout) == 0


def test_a_file_that_the_hub_knows_by_its_git_hash(layout: StoreLayout) -> None:
    damage(layout, flip)
    git = hashlib.sha1(f"blob {SIZE}\0".encode() + CONTENT).hexdigest()
    with PayloadServer({"file": CONTENT}) as server:
        file = server.remote_file("file", git_sha1=git)
        assert repair_blob(layout, file, SHA256, OPTIONS, None, StopSignal()) == SHA256
        assert server.sent_bytes == CHUNK_BYTES
    sound(layout)


def test_a_sound_blob_is_left_alone(layout: StoreLayout) -> None:
    before = layout.blob(SHA256).stat()
    assert repair(layout) == 0
    after = layout.blob(SHA256).stat()
    # The time of the last reading is not compared: it is read.
    for field in ("st_ino", "st_mode", "st_nlink", "st_size", "st_mtime_ns", "st_ctime_ns"):
        assert getattr(after, field) == getattr(before, field)


def test_lost_crcs_are_made_again(layout: StoreLayout) -> None:
    layout.blob_checks(SHA256).unlink()
    assert repair(layout) == 0


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_without_crcs_the_whole_file_is_fetched(layout: StoreLayout, how: str) -> None:
    damage(layout, flip)
    checks = layout.blob_checks(SHA256)
    if how == "lost":
        checks.unlink()
    else:
        data = bytearray(checks.read_bytes())
        data[-1] ^= 1
        checks.write_bytes(data)
    assert repair(layout) == SIZE


def test_a_blob_that_is_gone(layout: StoreLayout) -> None:
    layout.blob(SHA256).unlink()
    assert repair(layout) == SIZE


def test_a_blob_that_became_a_link(layout: StoreLayout, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    layout.blob(SHA256).unlink()
    layout.blob(SHA256).symlink_to(other)
    assert repair(layout) == SIZE
    assert other.read_bytes() == b"precious"


def test_the_damaged_blob_stays_until_the_repair_is_whole(layout: StoreLayout) -> None:
    damage(layout, zero_two)
    damaged = layout.blob(SHA256).read_bytes()
    gone = RemoteFile("file", SIZE, SHA256, "", "http://127.0.0.1:9/file")
    with pytest.raises(DownloadError):
        repair_blob(layout, gone, SHA256, OPTIONS, None, StopSignal())
    assert layout.blob(SHA256).read_bytes() == damaged
    # What was kept the first time is not copied or fetched again.
    assert repair(layout) == 2 * CHUNK_BYTES


def test_a_server_that_has_other_bytes_now(layout: StoreLayout) -> None:
    damage(layout, flip)
    damaged = layout.blob(SHA256).read_bytes()
    with PayloadServer({"file": damaged}) as server:
        file = server.remote_file("file", sha256=SHA256)
        with pytest.raises(IntegrityError):
            repair_blob(layout, file, SHA256, OPTIONS, None, StopSignal())
    assert layout.blob(SHA256).read_bytes() == damaged


def test_a_stop_at_every_report(layout: StoreLayout) -> None:
    damage(layout, flip)
    with PayloadServer({"file": CONTENT}, lambda *_: Fault(stall_after=100)) as server:
        file = server.remote_file("file", sha256=SHA256)
        for count in range(1, 4):
            stop = StopSignal()
            seen = []

            def watch(report: object, seen: list[object] = seen, stop: StopSignal = stop) -> None:
                seen.append(report)
                if len(seen) >= count:  # noqa: B023 - used up before the next round
                    stop.stop()

            assert repair_blob(layout, file, SHA256, OPTIONS, watch, stop) is None
    assert repair(layout) <= CHUNK_BYTES


def test_no_room_for_a_second_copy(layout: StoreLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(layout, flip)

    class Full:
        f_bavail, f_frsize = 3, 4096

    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _: Full)
        with pytest.raises(StoreError) as caught:
            repair(layout)
    assert caught.value.facts["required_bytes"] == int(SIZE * 1.05)
    assert repair(layout) == CHUNK_BYTES
