"""Fetching one file: right bytes once, resumed, stopped, capped, shared by two processes."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from qh_runtime.errors import DownloadError, IntegrityError, StoreError
from qh_runtime.store.download import MAX_SPAN_BYTES, fetch_file, fetch_span
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.part import CHUNK_BYTES, Part, chunk_checks
from qh_runtime.store.transfer import FetchOptions, RemoteFile, StopSignal, TransferProgress
from tests.support.payload_server import Fault, PayloadServer

CONTENT = random.Random(11).randbytes(9 * CHUNK_BYTES + 4321)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OPTIONS = FetchOptions(retry_delay_s=0.01, max_delay_s=0.05, read_timeout_s=0.5)


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    return StoreLayout(tmp_path / "store")


class Watch:
    """Keeps the reports of a transfer; `at` runs a function once when a state of it is seen."""

    def __init__(self) -> None:
        self.reports: list[TransferProgress] = []
        self.stop = StopSignal()
        self.stop_at_bytes: int | None = None
        self.threads: set[int | None] = set()

    def __call__(self, report: TransferProgress) -> None:
        self.reports.append(report)
        self.threads.add(threading.get_ident())
        if self.stop_at_bytes is not None and report.fetched_bytes >= self.stop_at_bytes:
            self.stop.stop()


def fetch(
    layout: StoreLayout,
    file: RemoteFile,
    options: FetchOptions = OPTIONS,
    watch: Watch | None = None,
) -> str | None:
    watch = watch or Watch()
    try:
        return fetch_file(layout, file, options, watch, watch.stop)
    finally:
        left = [x.name for x in threading.enumerate() if x.name.startswith(("fetch", "hash"))]
        assert left == []


def leftovers(layout: StoreLayout) -> list[str]:
    """Files of the store that are no blob and hold bytes."""
    return [
        x.name
        for x in layout.root.rglob("*")
        if x.is_file() and x.parent != layout.blobs and x.stat().st_size
    ]


@pytest.mark.parametrize("connections", [1, 2, 4, 16])
@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 9 * CHUNK_BYTES + 4321])
def test_every_byte_once(layout: StoreLayout, size: int, connections: int) -> None:
    content = CONTENT[:size]
    sha256 = hashlib.sha256(content).hexdigest()
    with PayloadServer({"file": content}) as server:
        file = server.remote_file("file", sha256=sha256)
        assert fetch(layout, file, FetchOptions(connections=connections)) == sha256
        assert layout.blob(sha256).read_bytes() == content
        assert server.sent_bytes == size
    assert leftovers(layout) == []
    assert chunk_checks(layout, sha256, size) is not None


def test_a_file_with_a_git_hash_alone(layout: StoreLayout) -> None:
    content = b'{"model_type": "llama"}\n'
    git = hashlib.sha1(b"blob 24\0" + content).hexdigest()
    sha256 = hashlib.sha256(content).hexdigest()
    with PayloadServer({"config.json": content}) as server:
        assert fetch(layout, server.remote_file("config.json", git_sha1=git)) == sha256
        assert layout.blob(sha256).read_bytes() == content
        with pytest.raises(IntegrityError) as caught:
            fetch(layout, server.remote_file("config.json", git_sha1="0" * 40))
    assert caught.value.facts == {"path": "config.json", "expected": "0" * 40, "found": git}
    assert leftovers(layout) == []


def test_a_blob_that_is_there_is_not_asked_for(layout: StoreLayout) -> None:
    with PayloadServer({"file": CONTENT}) as server:
        file = server.remote_file("file", sha256=SHA256)
        fetch(layout, file)
        asked = len(server.requests)
        watch = Watch()
        assert fetch(layout, file, watch=watch) == SHA256
        assert len(server.requests) == asked
    assert [x.state for x in watch.reports] == ["done"]


def test_a_blob_of_another_size_is_replaced(layout: StoreLayout) -> None:
    layout.blobs.mkdir(parents=True)
    layout.blob(SHA256).write_bytes(CONTENT[:-1])
    with PayloadServer({"file": CONTENT}) as server:
        assert fetch(layout, server.remote_file("file", sha256=SHA256)) == SHA256
    assert layout.blob(SHA256).read_bytes() == CONTENT


def test_what_a_kill_after_the_rename_left_is_tidied(layout: StoreLayout) -> None:
    with PayloadServer({"file": CONTENT}) as server:
        file = server.remote_file("file", sha256=SHA256)
        fetch(layout, file)
        Part(layout, file.key, file.size).close()
        assert fetch(layout, file) == SHA256
    assert leftovers(layout) == []


def test_reports_come_from_the_calling_thread_and_add_up(layout: StoreLayout) -> None:
    watch = Watch()
    with PayloadServer({"file": CONTENT}, bytes_per_s=20e6) as server:
        fetch(layout, server.remote_file("file", sha256=SHA256), watch=watch)
    assert watch.threads == {threading.get_ident()}
    assert watch.reports[-1].state == "done"
    assert watch.reports[-1].done_bytes == len(CONTENT)
    done = [x.done_bytes for x in watch.reports]
    assert done == sorted(done)
    # 0.5 s of transfer at about ten reports a second.
    assert 4 <= len(watch.reports) <= 20
    assert {x.total_bytes for x in watch.reports} == {len(CONTENT)}


@pytest.mark.parametrize("connections", [1, 4])
def test_a_stop_keeps_what_arrived_to_the_byte(layout: StoreLayout, connections: int) -> None:
    options = FetchOptions(connections=connections)
    with PayloadServer({"file": CONTENT}, bytes_per_s=15e6) as server:
        file = server.remote_file("file", sha256=SHA256)
        for share in (0.1, 0.25):
            watch = Watch()
            watch.stop_at_bytes = int(share * len(CONTENT))
            assert fetch(layout, file, options, watch) is None
            assert not layout.blob(SHA256).exists()
        assert fetch(layout, file, options) == SHA256
        # A stop loses what was on its way through the kernels' buffers.
        assert server.sent_bytes <= 1.1 * len(CONTENT)
    assert layout.blob(SHA256).read_bytes() == CONTENT
    assert leftovers(layout) == []


@pytest.mark.parametrize("what", ["stall", "refused", "retry after", "capped"])
def test_a_stop_is_prompt_wherever_it_finds_the_transfer(layout: StoreLayout, what: str) -> None:
    options = FetchOptions(bytes_per_s=1000 if what == "capped" else None, retry_delay_s=30)
    fault = {
        "stall": Fault(stall_after=1000),
        "retry after": Fault(status=503, headers={"Retry-After": "100"}),
    }.get(what)
    watch = Watch()
    with PayloadServer({"file": CONTENT}, lambda number, _: fault) as server:
        file = server.remote_file("file", sha256=SHA256)
        if what == "refused":
            file = RemoteFile("file", len(CONTENT), SHA256, "", "http://127.0.0.1:9/file")
        stopped_within_a_second(layout, file, options, watch)
    expected = "retry" if what in ("refused", "retry after") else "fetch"
    assert expected in {x.state for x in watch.reports}
    assert all(bool(x.note) == (x.state == "retry") for x in watch.reports)


def test_a_stop_ends_the_wait_for_another_process(layout: StoreLayout) -> None:
    watch = Watch()
    layout.locks.mkdir(parents=True)
    with FileLock(layout.lock(SHA256)):
        file = RemoteFile("file", len(CONTENT), SHA256, "", "http://127.0.0.1:9/file")
        stopped_within_a_second(layout, file, OPTIONS, watch)
    assert {x.state for x in watch.reports} == {"wait"}
    assert all(x.note for x in watch.reports)


def stopped_within_a_second(
    layout: StoreLayout, file: RemoteFile, options: FetchOptions, watch: Watch
) -> None:
    timer = threading.Timer(0.25, watch.stop.stop)
    timer.start()
    start = time.monotonic()
    assert fetch(layout, file, options, watch) is None
    assert time.monotonic() - start < 1.25
    timer.join()


def test_the_cap_holds_over_all_connections(layout: StoreLayout) -> None:
    rate = 16e6
    with PayloadServer({"file": CONTENT}) as server:
        start = time.monotonic()
        fetch(
            layout,
            server.remote_file("file", sha256=SHA256),
            FetchOptions(bytes_per_s=rate, connections=4),
        )
        seconds = time.monotonic() - start
    assert seconds >= 0.8 * len(CONTENT) / rate


def test_a_connection_that_lags_far_behind_is_replaced(layout: StoreLayout) -> None:
    """It brings more than the least that counts, and would hold up the file for minutes."""
    options = FetchOptions(read_timeout_s=0.2)
    lagging = Fault(drip=(500, 0.05))
    with PayloadServer({"file": CONTENT}, lambda n, _: lagging if n == 1 else None) as server:
        start = time.monotonic()
        fetch(layout, server.remote_file("file", sha256=SHA256), options)
        assert time.monotonic() - start < 5
        assert server.sent_bytes <= 1.01 * len(CONTENT)


def test_damage_in_a_part_is_fetched_again_and_nothing_else(layout: StoreLayout) -> None:
    part = Part(layout, SHA256, len(CONTENT))
    for index in range(8):
        part.put(index, memoryview(CONTENT)[index * CHUNK_BYTES :][:CHUNK_BYTES])
    part.close()
    with open(layout.part(SHA256), "r+b") as file:
        file.seek(3 * CHUNK_BYTES + 5)
        file.write(b"rot")
    with PayloadServer({"file": CONTENT}) as server:
        assert fetch(layout, server.remote_file("file", sha256=SHA256)) == SHA256
        assert server.sent_bytes == len(CONTENT) - 7 * CHUNK_BYTES
    assert layout.blob(SHA256).read_bytes() == CONTENT


def test_the_beginning_of_a_chunk_is_not_fetched_again(layout: StoreLayout) -> None:
    part = Part(layout, SHA256, len(CONTENT))
    for index, length in ((0, 1000), (2, 700_001), (9, 4320)):
        part.put(index, memoryview(CONTENT)[index * CHUNK_BYTES :][:length])
    part.close()
    with PayloadServer({"file": CONTENT}) as server:
        assert fetch(layout, server.remote_file("file", sha256=SHA256)) == SHA256
        assert server.sent_bytes == len(CONTENT) - 1000 - 700_001 - 4320
    assert layout.blob(SHA256).read_bytes() == CONTENT


def test_a_complete_part_needs_no_server(layout: StoreLayout) -> None:
    part = Part(layout, SHA256, len(CONTENT))
    for index in range(10):
        part.put(index, memoryview(CONTENT)[index * CHUNK_BYTES :][:CHUNK_BYTES])
    part.close()
    nowhere = RemoteFile("file", len(CONTENT), SHA256, "", "http://127.0.0.1:9/file")
    assert fetch(layout, nowhere) == SHA256


def test_a_part_with_right_crcs_and_wrong_bytes_is_fetched_anew(layout: StoreLayout) -> None:
    part = Part(layout, SHA256, len(CONTENT))
    part.put(0, memoryview(bytes(CHUNK_BYTES)))
    part.close()
    with PayloadServer({"file": CONTENT}) as server:
        assert fetch(layout, server.remote_file("file", sha256=SHA256)) == SHA256
        assert server.sent_bytes == 2 * len(CONTENT) - CHUNK_BYTES
    assert layout.blob(SHA256).read_bytes() == CONTENT


def test_an_error_of_the_report_ends_the_transfer(layout: StoreLayout) -> None:
    def broken(report: TransferProgress) -> None:
        raise KeyboardInterrupt

    with (
        PayloadServer({"file": CONTENT}, bytes_per_s=20e6) as server,
        pytest.raises(KeyboardInterrupt),
    ):
        fetch_file(layout, server.remote_file("file", sha256=SHA256), OPTIONS, broken, StopSignal())
    assert [x for x in threading.enumerate() if x.name.startswith(("fetch", "hash"))] == []


def test_incomplete_metadata_is_refused(layout: StoreLayout) -> None:
    for file in (
        RemoteFile("file", 3, "", "", "https://example.com/file"),
        RemoteFile("file", -1, SHA256, "", "https://example.com/file"),
        RemoteFile("file", 3, "../../etc/passwd", "", "https://example.com/file"),
        RemoteFile("file", 3, "", "../../etc/passwd", "https://example.com/file"),
    ):
        with pytest.raises(StoreError):
            fetch(layout, file)
    assert not layout.root.exists() or leftovers(layout) == []


def test_two_threads_share_one_transfer(layout: StoreLayout) -> None:
    found: list[str | None] = []
    with PayloadServer({"file": CONTENT}, bytes_per_s=40e6) as server:
        file = server.remote_file("file", sha256=SHA256)

        def run() -> None:
            found.append(fetch_file(layout, file, OPTIONS, None, StopSignal()))

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [SHA256] * 3
        assert server.sent_bytes == len(CONTENT)


class TestSpan:
    """Pieces of a file that is not in the store."""

    @pytest.mark.parametrize(
        ("begin", "end"), [(0, 8), (8, 70_000), (5, 5), (len(CONTENT) - 3, len(CONTENT))]
    )
    def test_the_bytes_and_no_more(self, begin: int, end: int) -> None:
        with PayloadServer({"file": CONTENT}) as server:
            file = server.remote_file("file", sha256=SHA256)
            assert fetch_span(file, begin, end, OPTIONS) == CONTENT[begin:end]
            assert server.sent_bytes == end - begin

    def test_drops_go_on_at_the_byte(self) -> None:
        with PayloadServer(
            {"file": CONTENT}, lambda number, _: Fault(drop_after=100_000)
        ) as server:
            file = server.remote_file("file", sha256=SHA256)
            assert fetch_span(file, 77, 1_000_077, OPTIONS) == CONTENT[77:1_000_077]
            assert server.sent_bytes == 1_000_000
            assert len(server.requests) == 10

    def test_a_server_without_ranges(self) -> None:
        with PayloadServer({"file": CONTENT}, lambda *_: Fault(ignore_range=True)) as server:
            file = server.remote_file("file", sha256=SHA256)
            assert fetch_span(file, 300_000, 300_010, OPTIONS) == CONTENT[300_000:300_010]

    def test_a_server_without_ranges_far_into_a_file(self) -> None:
        size = MAX_SPAN_BYTES + CHUNK_BYTES
        with PayloadServer({"file": bytes(size)}, lambda *_: Fault(ignore_range=True)) as server:
            file = server.remote_file("file", sha256=SHA256)
            with pytest.raises(DownloadError):
                fetch_span(file, size - 10, size, OPTIONS)

    @pytest.mark.parametrize(("begin", "end"), [(-1, 5), (5, 4), (0, len(CONTENT) + 1)])
    def test_spans_that_are_not_there(self, begin: int, end: int) -> None:
        file = RemoteFile("file", len(CONTENT), SHA256, "", "http://127.0.0.1:9/file")
        with pytest.raises(StoreError):
            fetch_span(file, begin, end, OPTIONS)

    def test_no_span_is_larger_than_the_bound(self) -> None:
        file = RemoteFile("file", 1 << 40, SHA256, "", "http://127.0.0.1:9/file")
        with pytest.raises(StoreError):
            fetch_span(file, 0, MAX_SPAN_BYTES + 1, OPTIONS)

    def test_a_server_that_stays_away(self) -> None:
        file = RemoteFile("file", len(CONTENT), SHA256, "", "http://127.0.0.1:9/file")
        with pytest.raises(DownloadError):
            fetch_span(file, 0, 8, OPTIONS)

    def test_a_stop(self) -> None:
        signal = StopSignal()
        with PayloadServer({"file": CONTENT}, lambda *_: Fault(stall_after=10)) as server:
            timer = threading.Timer(0.1, signal.stop)
            timer.start()
            file = server.remote_file("file", sha256=SHA256)
            assert fetch_span(file, 0, 100, FetchOptions(), signal) is None
            timer.join()
