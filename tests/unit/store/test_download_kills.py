"""Downloads that are killed at any point, and two processes that want the same file."""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.part import CHUNK_BYTES, Part, chunk_checks
from qh_runtime.store.transfer import FetchOptions, RemoteFile
from tests.support.fetch_child import Child, ChildFetcher
from tests.support.figures import Record
from tests.support.payload_server import PayloadServer

SIZE = 12 * CHUNK_BYTES + 99
CONTENT = random.Random(5).randbytes(SIZE)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
# What one kill may cost: the bound of the reliability figures.
MAX_REFETCHED_BYTES = 8 << 20
RATE = 100e6


@pytest.fixture(scope="module")
def children() -> Iterator[ChildFetcher]:
    with ChildFetcher() as fetcher:
        yield fetcher


def kept_bytes(layout: StoreLayout) -> int:
    """Bytes of the part that the next run does not fetch; every one of them is right."""
    if layout.blob(SHA256).exists():
        return SIZE
    if not layout.journal(SHA256).exists():
        return 0
    part = Part(layout, SHA256, SIZE)
    kept = 0
    buffer = memoryview(bytearray(CHUNK_BYTES))
    for index in range(part.chunk_count):
        data = part.read(index, buffer, check=True)
        if data is not None:
            assert bytes(data) == CONTENT[index * CHUNK_BYTES :][: len(data)]
            kept += len(data)
    part.close()
    return kept


def wait_until_sent(server: PayloadServer, total: int, child: Child) -> None:
    while server.sent_bytes < total and not child.ended.is_set():
        time.sleep(0.0005)


def kill_again_and_again(
    folder: Path, children: ChildFetcher, kills: int, seed: int, record: Record
) -> None:
    """Kill downloads until there were so many kills, each anywhere in a file or behind its end."""
    rng = random.Random(seed)
    done = number = 0
    with PayloadServer({"file": CONTENT}, bytes_per_s=RATE) as server:
        file = server.remote_file("file", sha256=SHA256)
        while done < kills:
            number += 1
            layout = StoreLayout(folder / str(number))
            while not layout.blob(SHA256).exists():
                before, sent = kept_bytes(layout), server.sent_bytes
                child = children.start(layout.root, file, FetchOptions())
                # Anywhere in the next few MiB; past the last byte it is the end that is hit.
                wait_until_sent(server, sent + min(rng.randrange(6 << 20), SIZE - before), child)
                if before == SIZE:
                    # Hashing, making durable, renaming: as long as it takes, now and then.
                    child.ended.wait(rng.random() * 0.15)
                child.kill()
                done += child.status == -9
                # Sent and not kept; what the server counts after the kill went nowhere.
                cost = server.sent_bytes - sent - (kept_bytes(layout) - before)
                record("refetched_bytes", cost)
                assert cost <= MAX_REFETCHED_BYTES
                assert child.status in (0, -9)
            # A kill may hit between the blob and the end of the tidying; the next run does that.
            assert children.start(layout.root, file, FetchOptions()).wait() == 0
            bad_files = layout.blob(SHA256).read_bytes() != CONTENT
            record("bad_files", int(bad_files))
            record("orphan_bytes", left_over(layout))
            assert not bad_files
            assert chunk_checks(layout, SHA256, SIZE) is not None
            assert left_over(layout) == 0
    record("cases", done)


def left_over(layout: StoreLayout) -> int:
    files = [x for x in layout.root.rglob("*") if x.is_file()]
    blobs = {layout.blob(SHA256), layout.blob_checks(SHA256)}
    return sum(x.stat().st_size for x in files if x not in blobs)


def test_kills_at_any_point(
    tmp_path: Path, children: ChildFetcher, record_property: Record
) -> None:
    kill_again_and_again(tmp_path, children, 20, 1, record_property)


@pytest.mark.slow
def test_many_kills_at_any_point(
    tmp_path: Path, children: ChildFetcher, record_property: Record
) -> None:
    kill_again_and_again(tmp_path, children, 500, 2, record_property)


@pytest.mark.slow
def test_one_kill_costs_a_hundredth_of_a_large_file(
    tmp_path: Path, children: ChildFetcher, record_property: Record
) -> None:
    size = 1 << 30
    mib = random.Random(6).randbytes(CHUNK_BYTES - 8)
    content = b"".join(x.to_bytes(8, "big") + mib for x in range(size // CHUNK_BYTES))
    sha256 = hashlib.sha256(content).hexdigest()
    layout = StoreLayout(tmp_path)
    with PayloadServer({"file": content}) as server:
        file = server.remote_file("file", sha256=sha256)
        child = children.start(tmp_path, file, FetchOptions())
        wait_until_sent(server, size // 2, child)
        child.kill()
        assert child.status == -9
        assert children.start(tmp_path, file, FetchOptions()).wait() == 0
        refetched = server.sent_bytes - size
    record_property("refetched_bytes", refetched)
    assert refetched <= size // 100
    assert layout.blob(sha256).read_bytes() == content


def wanted(server: PayloadServer) -> RemoteFile:
    return server.remote_file("file", sha256=SHA256)


def test_two_processes_fetch_a_file_once(
    tmp_path: Path, children: ChildFetcher, record_property: Record
) -> None:
    with PayloadServer({"file": CONTENT}, bytes_per_s=RATE) as server:
        both = [children.start(tmp_path, wanted(server), FetchOptions()) for _ in range(2)]
        assert [x.wait() for x in both] == [0, 0]
        record_property("sent_ratio", server.sent_bytes / SIZE)
        assert server.sent_bytes <= 1.05 * SIZE
    assert StoreLayout(tmp_path).blob(SHA256).read_bytes() == CONTENT
    assert left_over(StoreLayout(tmp_path)) == 0


def test_the_other_goes_on_within_a_second_of_a_kill(
    tmp_path: Path, children: ChildFetcher, record_property: Record
) -> None:
    layout = StoreLayout(tmp_path)
    with PayloadServer({"file": CONTENT}, bytes_per_s=50e6) as server:
        holder = children.start(tmp_path, wanted(server), FetchOptions())
        wait_until_sent(server, SIZE // 4, holder)
        waiting = children.start(tmp_path, wanted(server), FetchOptions())
        wait_until_sent(server, SIZE // 2, holder)
        asked = len(server.requests)
        holder.kill()
        killed = time.monotonic()
        while len(server.requests) == asked:
            time.sleep(0.001)
        record_property("lock_free_s", time.monotonic() - killed)
        assert time.monotonic() - killed < 1
        assert waiting.wait() == 0
        assert server.sent_bytes <= SIZE + MAX_REFETCHED_BYTES
    assert layout.blob(SHA256).read_bytes() == CONTENT


@pytest.mark.slow
def test_many_pairs_of_processes(
    tmp_path: Path, children: ChildFetcher, record_property: Record
) -> None:
    """Two want the same file; of every second pair, the one that works on it is killed."""
    rng = random.Random(9)
    for number in range(200):
        layout = StoreLayout(tmp_path / str(number))
        with PayloadServer({"file": CONTENT}, bytes_per_s=4 * RATE) as server:
            first = children.start(layout.root, wanted(server), FetchOptions())
            if number % 2:
                wait_until_sent(server, rng.randrange(SIZE), first)
            second = children.start(layout.root, wanted(server), FetchOptions())
            if number % 2:
                wait_until_sent(server, rng.randrange(SIZE), first)
                first.kill()
            assert first.wait() in ((0, -9) if number % 2 else (0,))
            assert second.wait() == 0
            extra = server.sent_bytes - SIZE
            if first.status == -9:
                record_property("refetched_bytes", extra)
                assert extra <= MAX_REFETCHED_BYTES
            else:
                record_property("sent_ratio", server.sent_bytes / SIZE)
                assert server.sent_bytes <= 1.05 * SIZE
        bad_files = layout.blob(SHA256).read_bytes() != CONTENT
        record_property("bad_files", int(bad_files))
        record_property("orphan_bytes", left_over(layout))
        assert not bad_files
        assert left_over(layout) == 0
        shutil.rmtree(layout.root)
    record_property("cases", 200)
