"""Disks that are full, limited, read-only or failing: a clear error, and nothing is lost."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qh_runtime.errors import StoreError
from qh_runtime.store import part as part_module
from qh_runtime.store.download import fetch_file
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.part import CHUNK_BYTES
from qh_runtime.store.transfer import FetchOptions, StopSignal, TransferProgress
from tests.support.figures import Record
from tests.support.payload_server import PayloadServer

SIZE = 6 * CHUNK_BYTES + 3
CONTENT = random.Random(3).randbytes(SIZE)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SHORT = CONTENT[: CHUNK_BYTES + 5]
SHORT_SHA256 = hashlib.sha256(SHORT).hexdigest()


def fetch(
    layout: StoreLayout,
    server: PayloadServer,
    on_progress: Callable[[TransferProgress], None] | None = None,
) -> str | None:
    sha256 = SHORT_SHA256 if server.files["file"] is SHORT else SHA256
    file = server.remote_file("file", sha256=sha256)
    return fetch_file(layout, file, FetchOptions(), on_progress, StopSignal())


def refused(layout: StoreLayout, server: PayloadServer, **more: Any) -> dict[str, Any]:
    """The facts of the error that a fetch ends in."""
    with pytest.raises(StoreError) as caught:
        fetch(layout, server, **more)
    assert caught.value.hint
    assert not layout.blob(SHA256).exists()
    return caught.value.facts


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs rights that this user does not have")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_file_that_cannot_fit_is_refused_before_it_is_asked_for(small_disk: Path) -> None:
    size = 8 * CHUNK_BYTES
    with PayloadServer({"file": bytes(size)}) as server:
        facts = refused(StoreLayout(small_disk / "store"), server)
        assert server.requests == []
    assert facts["required_bytes"] == int(size * 1.05)
    assert facts["free_bytes"] <= size
    assert str(small_disk) in facts["path"]


def test_a_disk_that_fills_up_midway_keeps_what_came(small_disk: Path) -> None:
    layout = StoreLayout(small_disk / "store")
    filler = small_disk / "filler"

    def fill(report: TransferProgress) -> None:
        if report.done_bytes >= CHUNK_BYTES and not filler.exists():
            filler.write_bytes(bytes(4 * CHUNK_BYTES))

    with PayloadServer({"file": CONTENT}, bytes_per_s=20e6) as server:
        facts = refused(layout, server, on_progress=fill)
        assert 0 < facts["required_bytes"] < SIZE
        assert facts["free_bytes"] < CHUNK_BYTES
        filler.unlink()
        assert fetch(layout, server) == SHA256
        # The part went on: at most a chunk for each connection came twice.
        assert server.sent_bytes <= SIZE + 4 * CHUNK_BYTES
    assert layout.blob(SHA256).read_bytes() == CONTENT


def test_a_disk_that_is_read_only(small_disk: Path) -> None:
    layout = StoreLayout(small_disk / "store")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with PayloadServer({"file": CONTENT}) as server:
        assert str(small_disk) in refused(layout, server)["path"]
        assert server.requests == []
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        assert fetch(layout, server) == SHA256


def test_a_file_size_limit_is_noticed_before_anything_is_asked_for(tmp_path: Path) -> None:
    layout = StoreLayout(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with PayloadServer({"file": CONTENT}) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * CHUNK_BYTES, before[1]))
        try:
            facts = refused(layout, server)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert facts["required_bytes"] == SIZE
        assert server.requests == []
        assert fetch(layout, server) == SHA256


@pytest.mark.parametrize("folder", ["parts", "blobs", "locks"])
def test_a_file_where_a_folder_should_be(tmp_path: Path, folder: str) -> None:
    layout = StoreLayout(tmp_path)
    (tmp_path / folder).write_bytes(b"in the way")
    with PayloadServer({"file": CONTENT}) as server:
        assert str(tmp_path) in refused(layout, server)["path"]
        (tmp_path / folder).unlink()
        assert fetch(layout, server) == SHA256


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a folder of mode 0555")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with PayloadServer({"file": CONTENT}) as server:
        assert str(tmp_path) in refused(StoreLayout(tmp_path), server)["path"]
    tmp_path.chmod(0o755)


@pytest.mark.parametrize("name", ["pwrite", "fsync", "rename", "ftruncate", "sync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_every_call_to_the_disk_may_fail(
    store_root: Path, name: str, code: int, record_property: Record
) -> None:
    """The n-th one fails, for all n; then the next run succeeds, and nothing is left over."""
    failed = 0
    with PayloadServer({"file": SHORT}) as server:
        for nth in range(1, 100):
            layout = StoreLayout(store_root / str(nth))
            with pytest.MonkeyPatch.context() as monkeypatch:
                calls = fail_nth(monkeypatch, name, nth, code)
                try:
                    fetch(layout, server)
                except StoreError:
                    failed += 1
            blob = layout.blob(SHORT_SHA256)
            assert not blob.exists() or blob.read_bytes() == SHORT
            assert fetch(layout, server) == SHORT_SHA256
            assert blob.read_bytes() == SHORT
            assert list(layout.parts.iterdir()) == []
            assert len(list(layout.blobs.iterdir())) == 2
            if len(calls) < nth:
                break
    record_property("cases", failed)
    assert failed >= 1, "no call was made to fail"


def fail_nth(monkeypatch: pytest.MonkeyPatch, name: str, nth: int, code: int) -> list[int]:
    """Let the n-th call of one function fail; returns a list that grows with each call."""
    calls: list[int] = []
    function = part_module._sync_data if name == "sync" else getattr(os, name)

    def call(*args: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == nth:
            raise OSError(code, os.strerror(code))
        return function(*args)

    if name == "sync":
        monkeypatch.setattr(part_module, "_sync_data", call)
        monkeypatch.setattr(part_module, "SYNC_BYTES", CHUNK_BYTES)
    else:
        monkeypatch.setattr(part_module.os, name, call)
    return calls
