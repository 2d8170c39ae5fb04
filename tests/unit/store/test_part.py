"""Unfinished files: what is recorded counts after any end of the process, and nothing else does."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qh_runtime.errors import StoreError
from qh_runtime.store import part as part_module
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.part import CHUNK_BYTES, Part, check_space, chunk_checks
from tests.support.figures import Record

SIZE = 3 * CHUNK_BYTES + 1234
CONTENT = random.Random(7).randbytes(SIZE)
KEY = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    return StoreLayout(tmp_path / "store")


def open_part(layout: StoreLayout) -> Part:
    return Part(layout, KEY, SIZE)


def put(part: Part, index: int, length: int | None = None, start: int = 0) -> None:
    begin = index * CHUNK_BYTES
    length = part.chunk_length(index) if length is None else length
    part.put(index, memoryview(CONTENT)[begin : begin + length], start)


def read(part: Part, index: int, *, check: bool = True) -> bytes | None:
    found = part.read(index, memoryview(bytearray(CHUNK_BYTES)), check=check)
    return None if found is None else bytes(found)


def complete(part: Part) -> list[int]:
    """Chunks whose bytes are there and right, as a reopened part sees them."""
    return [x for x in range(part.chunk_count) if part.has(x) and read(part, x) is not None]


def everything(layout: StoreLayout) -> set[str]:
    return {str(x.relative_to(layout.root)) for x in layout.root.rglob("*") if x.is_file()}


def test_chunks_in_any_order_become_the_blob(layout: StoreLayout) -> None:
    part = open_part(layout)
    assert (part.chunk_count, part.chunk_length(3), part.done_bytes) == (4, 1234, 0)
    for index in (2, 0, 3, 1):
        put(part, index)
    assert part.done_bytes == SIZE
    blob = part.finish(KEY)
    assert blob == layout.blob(KEY)
    assert blob.read_bytes() == CONTENT
    assert stat.S_IMODE(blob.stat().st_mode) == 0o444
    assert everything(layout) == {f"blobs/{KEY}", f"blobs/{KEY}.crc"}


def test_the_checks_beside_a_blob_are_its_crcs(layout: StoreLayout) -> None:
    part = open_part(layout)
    for index in range(4):
        put(part, index)
    part.finish(KEY)
    expected = tuple(zlib.crc32(CONTENT[x : x + CHUNK_BYTES]) for x in range(0, SIZE, CHUNK_BYTES))
    assert chunk_checks(layout, KEY, SIZE) == expected
    assert chunk_checks(layout, KEY, SIZE + 1) is None
    path = layout.blob_checks(KEY)
    damaged = bytearray(path.read_bytes())
    damaged[30] ^= 1
    path.write_bytes(damaged)
    assert chunk_checks(layout, KEY, SIZE) is None
    path.unlink()
    assert chunk_checks(layout, KEY, SIZE) is None


def test_the_checks_are_not_older_than_the_blob(layout: StoreLayout) -> None:
    """`integrity` takes a blob younger than its checks for one that was written to."""
    part = open_part(layout)
    for index in range(4):
        put(part, index)
    blob = part.finish(KEY)
    assert layout.blob_checks(KEY).stat().st_mtime_ns >= blob.stat().st_mtime_ns


def test_a_file_without_bytes(layout: StoreLayout) -> None:
    empty = hashlib.sha256(b"").hexdigest()
    part = Part(layout, empty, 0)
    assert (part.chunk_count, part.missing_bytes) == (0, 0)
    assert part.finish(empty).read_bytes() == b""
    assert chunk_checks(layout, empty, 0) == ()


def test_a_reopened_part_knows_its_chunks(layout: StoreLayout) -> None:
    part = open_part(layout)
    put(part, 1)
    put(part, 3)
    part.close()
    again = open_part(layout)
    assert again.resumed
    assert complete(again) == [1, 3]
    assert again.done_bytes == CHUNK_BYTES + 1234
    again.close()


def test_a_chunk_continues_where_it_stopped(layout: StoreLayout) -> None:
    part = open_part(layout)
    put(part, 2, length=70_001)
    part.close()
    again = open_part(layout)
    assert not again.has(2)
    assert again.prefix(2) == 70_001
    assert read(again, 2) == CONTENT[2 * CHUNK_BYTES :][:70_001]
    put(again, 2, start=70_001)
    assert read(again, 2) == CONTENT[2 * CHUNK_BYTES :][:CHUNK_BYTES]
    again.close()


@pytest.mark.parametrize("cut", range(1, 16))
def test_a_torn_record_is_no_record(layout: StoreLayout, cut: int) -> None:
    part = open_part(layout)
    put(part, 0)
    put(part, 1)
    part.close()
    journal = layout.journal(KEY)
    os.truncate(journal, journal.stat().st_size - cut)
    again = open_part(layout)
    assert complete(again) == [0]
    put(again, 2)
    again.close()
    # What follows a torn record is read as it was written.
    last = open_part(layout)
    assert complete(last) == [0, 2]
    last.close()


def test_a_damaged_record_hides_its_chunk_alone(layout: StoreLayout) -> None:
    part = open_part(layout)
    for index in (0, 1, 2):
        put(part, index)
    part.close()
    journal = layout.journal(KEY)
    data = bytearray(journal.read_bytes())
    data[-16 - 8] ^= 0x40
    journal.write_bytes(data + bytes(16))
    again = open_part(layout)
    assert complete(again) == [0, 2]
    again.close()


def test_bytes_the_disk_lost_are_fetched_again(layout: StoreLayout) -> None:
    """A record may survive a power cut that its bytes do not."""
    part = open_part(layout)
    for index in range(4):
        put(part, index)
    part.close()
    with open(layout.part(KEY), "r+b") as file:
        file.seek(CHUNK_BYTES)
        file.write(bytes(4096))
    again = open_part(layout)
    assert complete(again) == [0, 2, 3]
    assert not again.has(1)
    assert again.missing_bytes == CHUNK_BYTES
    put(again, 1)
    assert again.finish(KEY).read_bytes() == CONTENT


@pytest.mark.parametrize("damage", ["truncated", "removed"])
def test_a_part_that_lost_its_end(layout: StoreLayout, damage: str) -> None:
    part = open_part(layout)
    for index in range(4):
        put(part, index)
    part.close()
    if damage == "removed":
        layout.part(KEY).unlink()
    else:
        os.truncate(layout.part(KEY), CHUNK_BYTES + 7)
    again = open_part(layout)
    assert complete(again) == ([] if damage == "removed" else [0])
    again.close()


@pytest.mark.parametrize("what", ["size", "garbage", "empty", "none"])
def test_a_journal_of_something_else_starts_anew(layout: StoreLayout, what: str) -> None:
    part = Part(layout, KEY, SIZE + (1 if what == "size" else 0))
    put(part, 0)
    part.close()
    journal = layout.journal(KEY)
    if what == "garbage":
        journal.write_bytes(os.urandom(500))
    elif what == "empty":
        journal.write_bytes(b"")
    elif what == "none":
        journal.unlink()
    again = open_part(layout)
    assert not again.resumed
    assert complete(again) == []
    put(again, 1)
    again.close()
    last = open_part(layout)
    assert complete(last) == [1]
    last.close()


def test_a_part_made_read_only_just_before_a_kill_opens(layout: StoreLayout) -> None:
    part = open_part(layout)
    put(part, 0)
    part.close()
    os.chmod(layout.part(KEY), 0o444)
    again = open_part(layout)
    put(again, 1)
    again.close()


def test_a_link_is_not_followed(layout: StoreLayout, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    layout.parts.mkdir(parents=True)
    layout.part(KEY).symlink_to(victim)
    with pytest.raises(StoreError):
        open_part(layout)
    assert victim.read_bytes() == b"precious"


def test_what_a_kill_left_of_small_files_is_used_up(layout: StoreLayout) -> None:
    layout.parts.mkdir(parents=True)
    layout.blobs.mkdir()
    (layout.parts / f".{KEY}.journal.tmp").write_bytes(bytes(500))
    (layout.blobs / f".{KEY}.crc.tmp").write_bytes(bytes(500))
    part = open_part(layout)
    for index in range(4):
        put(part, index)
    part.finish(KEY)
    assert everything(layout) == {f"blobs/{KEY}", f"blobs/{KEY}.crc"}
    assert chunk_checks(layout, KEY, SIZE) is not None


def test_discard_leaves_nothing(layout: StoreLayout) -> None:
    part = open_part(layout)
    put(part, 0)
    part.discard()
    assert everything(layout) == set()


def test_room_is_checked_with_five_percent(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    free = found.f_bavail * found.f_frsize
    check_space(tmp_path / "not" / "there", free // 2)
    with pytest.raises(StoreError) as caught:
        check_space(tmp_path / "not" / "there", free)
    assert caught.value.facts["required_bytes"] >= int(free * 1.05)
    assert caught.value.facts["free_bytes"] > 0


class Failing:
    """Lets a function of `os` fail the n-th time it is called in `part`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nth: int, code: int) -> None:
        self.left = nth
        self.code = code
        for name in ("pwrite", "fsync", "rename", "ftruncate", "fchmod", "open"):
            monkeypatch.setattr(part_module.os, name, self.wrap(getattr(os, name)))
        monkeypatch.setattr(part_module, "_sync_data", self.wrap(os.fdatasync))

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise OSError(self.code, os.strerror(self.code))
            return function(*args, **kwargs)

        return call


def transfer(layout: StoreLayout) -> Path:
    """What a transfer does with a part, every chunk made durable."""
    part = open_part(layout)
    try:
        for index in range(part.chunk_count):
            if not part.has(index) or read(part, index) is None:
                put(part, index)
                part.sync()
        return part.finish(KEY)
    finally:
        part.close()


def facts_of_failure(layout: StoreLayout) -> dict[str, Any]:
    try:
        transfer(layout)
    except StoreError as error:
        return error.facts
    return {}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_the_store_survives_every_failing_call(
    layout: StoreLayout, code: int, record_property: Record
) -> None:
    """The n-th write, sync, rename fails, for all n: a clear error, then the next run succeeds."""
    for nth in range(1, 100):
        with pytest.MonkeyPatch.context() as monkeypatch:
            failing = Failing(monkeypatch, nth, code)
            facts = facts_of_failure(layout)
            if failing.left > 0:
                break
        if facts:
            assert str(layout.root) in facts["path"]
            assert ("free_bytes" in facts) == (code == errno.ENOSPC)
        blob = layout.blob(KEY)
        assert not blob.exists() or blob.read_bytes() == CONTENT
        if nth % 2:
            assert transfer(layout).read_bytes() == CONTENT
            assert chunk_checks(layout, KEY, SIZE) is not None
            assert everything(layout) == {f"blobs/{KEY}", f"blobs/{KEY}.crc"}
            blob.unlink()
    else:
        pytest.fail("the transfer has no end")
    record_property("cases", nth - 1)
    assert nth > 20, "fewer calls than a transfer makes: the fault was not injected"


def test_what_a_failed_sync_left_in_memory_does_not_count(
    layout: StoreLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = open_part(layout)
    put(part, 0)
    part.sync()
    put(part, 1)
    with monkeypatch.context() as patch:
        Failing(patch, 1, errno.EIO)
        with pytest.raises(StoreError):
            part.sync()
    with pytest.raises(StoreError):
        put(part, 2)
    part.close()
    again = open_part(layout)
    assert complete(again) == [0]
    again.close()


def test_bytes_are_made_durable_every_eight_mib(
    layout: StoreLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    count = 0
    monkeypatch.setattr(part_module, "_sync_data", lambda _: synced.append(count))
    part = Part(layout, KEY, 40 * CHUNK_BYTES)
    for index in range(40):
        count = index + 1
        part.put(index, memoryview(bytes(CHUNK_BYTES)))
    part.close()
    assert synced == [x for x in (8, 16, 24, 32, 40) for _ in range(2)]
