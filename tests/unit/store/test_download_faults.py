"""Every fault of a server or a link: the right bytes, or a clear error, and a store that goes on.

Each case runs on one size in the default tier and on three in the slow one.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from qh_runtime.errors import DownloadError, IntegrityError, StoreError
from qh_runtime.store.download import fetch_file
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.transfer import FetchOptions, StopSignal
from tests.support.figures import Record
from tests.support.payload_server import Fault, PayloadServer, Request

MIB = 1 << 20
MB = 1_000_000
OPTIONS = FetchOptions(
    token="secret", retry_delay_s=0.01, max_delay_s=0.05, read_timeout_s=0.25, tries=4
)
SIZES = {
    "quick": 5 * MIB + 777,
    "longer": 13 * MIB + 777,
    "small": 300_000,
    "chunks": 4 * MIB,
    "large": 37 * MIB + 1,
}

# What happens after more bytes than the quick size has.
LONGER = {"drop each 12 MB"}

Plan = Callable[[int, Request], Fault | None]


@dataclass(frozen=True)
class Case:
    """A fault and what it must end in.

    Attributes:
        plan: made anew for each run.
        error: the exception, or None for the right bytes.
        ratio: payload the server may have sent, as a multiple of the size.
    """

    plan: Callable[[], Plan]
    error: type[StoreError] | None = None
    ratio: float = 1.1


def always(fault: Fault) -> Callable[[], Plan]:
    return lambda: lambda number, request: fault


def first(count: int, fault: Fault) -> Callable[[], Plan]:
    return lambda: lambda number, request: fault if number < count else None


def gone_after_a_drop() -> Plan:
    return lambda number, request: Fault(status=404) if number else Fault(drop_after=100_000)


def each(*faults: Fault | None) -> Callable[[], Plan]:
    def plan() -> Plan:
        rest = itertools.cycle(faults)
        return lambda number, request: next(rest)

    return plan


PAGE = b"<!DOCTYPE html><title>Sign in</title>"

CASES = {
    "drop each 1 MB": Case(always(Fault(drop_after=MB))),
    "drop each 5 MB": Case(always(Fault(drop_after=5 * MB))),
    "drop each 12 MB": Case(always(Fault(drop_after=12 * MB))),
    "reset each 3 MB": Case(always(Fault(drop_after=3 * MB, reset=True))),
    "drop each 100 bytes for a while": Case(first(30, Fault(drop_after=100))),
    "drop before the first byte": Case(first(3, Fault(drop_after=0))),
    "never a byte": Case(always(Fault(drop_after=0)), DownloadError, 0),
    "stall now and then": Case(each(Fault(stall_after=2 * MB), None)),
    "stall always": Case(always(Fault(stall_after=0)), DownloadError, 0),
    "slow drip at first": Case(first(1, Fault(drip=(25, 0.05)))),
    "slow drip always": Case(always(Fault(drip=(25, 0.05))), DownloadError, 0.2),
    "short body, honest": Case(always(Fault(content=b"short")), DownloadError, 0),
    "short whole body, honest": Case(
        always(Fault(content=b"short", ignore_range=True)), DownloadError, 0
    ),
    "long body": Case(always(Fault(extra=b"x" * 5000))),
    "longer file": Case(always(Fault(content=bytes(99 * MIB))), DownloadError, 0),
    "200 to a range": Case(always(Fault(ignore_range=True))),
    "200 to a range and drops": Case(
        each(Fault(ignore_range=True, drop_after=2 * MB), None), None, 1.7
    ),
    "200 to a range and drops at one place": Case(
        always(Fault(ignore_range=True, drop_after=100_000)), DownloadError, 3
    ),
    "200 to a range in chunks": Case(always(Fault(ignore_range=True, chunked=True))),
    "200 without a length": Case(always(Fault(ignore_range=True, no_length=True))),
    "206 in chunks": Case(always(Fault(chunked=True))),
    "wrong range": Case(always(Fault(range_shift=1)), None, 1.2),
    "wrong range once": Case(first(1, Fault(range_shift=-1)), None, 1.2),
    "416 always": Case(always(Fault(status=416)), DownloadError, 0),
    "416 at first": Case(first(1, Fault(status=416))),
    "416 with another size": Case(
        always(Fault(status=416, headers={"Content-Range": "bytes */5"})), DownloadError, 0
    ),
    "408 at first": Case(first(2, Fault(status=408))),
    "408 always": Case(always(Fault(status=408)), DownloadError, 0),
    "500 at first": Case(first(3, Fault(status=500))),
    "502 now and then": Case(each(Fault(status=502), None)),
    "503 always": Case(always(Fault(status=503)), DownloadError, 0),
    "401": Case(always(Fault(status=401)), DownloadError, 0),
    "403": Case(always(Fault(status=403)), DownloadError, 0),
    "404": Case(always(Fault(status=404)), DownloadError, 0),
    "404 midway": Case(gone_after_a_drop, DownloadError),
    "redirect loop": Case(
        always(Fault(status=302, headers={"Location": "/file"})), DownloadError, 0
    ),
    "redirect to nowhere": Case(always(Fault(status=302)), DownloadError, 0),
    "etag changes midway, bytes do not": Case(
        # Each connection may have been sent what the buffers hold before it sees the etag.
        lambda: lambda number, _: Fault(etag='"two"') if number >= 2 else None,
        None,
        2,
    ),
    "every answer has another etag": Case(
        lambda: lambda number, _: Fault(etag=f'"{number}"'),
        None,
        2,
    ),
    "gzip despite identity": Case(
        always(Fault(more_headers={"Content-Encoding": "gzip"})), DownloadError, 0.1
    ),
    "page instead of the file": Case(
        always(Fault(content=PAGE, ignore_range=True, more_headers={"Content-Type": "text/html"})),
        DownloadError,
        0.1,
    ),
    "page instead of the file, 206": Case(always(Fault(content=PAGE)), DownloadError, 0.1),
}  # fmt: skip


@cache
def content_of(size: int) -> tuple[bytes, str]:
    content = random.Random(size).randbytes(size)
    return content, hashlib.sha256(content).hexdigest()


def run(folder: Path, case: Case, size: int, record: Record) -> None:
    content, sha256 = content_of(size)
    layout = StoreLayout(folder)
    with PayloadServer({"file": content}, case.plan()) as server:
        file = server.remote_file("file", sha256=sha256)
        if case.error is None:
            assert fetch_file(layout, file, OPTIONS, None, StopSignal()) == sha256
        else:
            with pytest.raises(case.error) as caught:
                fetch_file(layout, file, OPTIONS, None, StopSignal())
            assert caught.value.facts["file"] == "file"
            assert caught.value.hint
            assert "secret" not in str(caught.value)
            assert not layout.blob(sha256).exists()
            sent_before = server.sent_bytes
            # What was kept is good: a server that recovers sends the rest.
            server.plan = lambda number, request: None
            assert fetch_file(layout, file, OPTIONS, None, StopSignal()) == sha256
            assert server.sent_bytes <= size + sent_before
        if case.error is None and case.ratio == 1.1:
            record("sent_ratio", server.sent_bytes / size)
        # Bytes in a chunk that a drop of at most 100 bytes leaves are few, whatever the size.
        assert case.error or server.sent_bytes <= case.ratio * size + MIB * (case.ratio > 1.1)
    bad_files = layout.blob(sha256).read_bytes() != content
    record("bad_files", int(bad_files))
    assert not bad_files
    left = [x for x in layout.root.rglob("*") if x.is_file() and x.parent != layout.blobs]
    record("orphan_bytes", sum(x.stat().st_size for x in left))
    assert [x.name for x in left if x.stat().st_size] == []


@pytest.mark.parametrize("name", CASES)
def test_right_bytes_or_a_clear_error(tmp_path: Path, name: str, record_property: Record) -> None:
    run(tmp_path, CASES[name], SIZES["longer" if name in LONGER else "quick"], record_property)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "chunks", "large"])
@pytest.mark.parametrize("name", CASES)
def test_right_bytes_or_a_clear_error_for_every_size(
    tmp_path: Path, name: str, size: str, record_property: Record
) -> None:
    run(tmp_path, CASES[name], SIZES[size], record_property)


@pytest.mark.slow
def test_a_stall_is_noticed_in_time_as_shipped(tmp_path: Path, record_property: Record) -> None:
    """With the options of every pull: the connection that says nothing is given up for another."""
    content, sha256 = content_of(SIZES["chunks"])
    asked: list[float] = []

    def plan(number: int, request: Request) -> Fault | None:
        asked.append(time.monotonic())
        return None if number else Fault(stall_after=MIB, stall_s=120)

    options = FetchOptions(connections=1)
    with PayloadServer({"file": content}, plan) as server:
        file = server.remote_file("file", sha256=sha256)
        assert fetch_file(StoreLayout(tmp_path), file, options, None, StopSignal()) == sha256
        assert server.sent_bytes == len(content)
    record_property("stall_noticed_s", asked[1] - asked[0])
    assert asked[1] - asked[0] <= 30


class TestOtherBytes:
    """Bytes that are not the file's never get its name."""

    @pytest.fixture
    def contents(self) -> tuple[bytes, bytes]:
        """Two versions of one size that differ in one byte near the end."""
        content, _ = content_of(SIZES["longer"])
        return content, content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]

    def test_a_wrong_hash_is_fetched_once_and_thrown_away(
        self, tmp_path: Path, contents: tuple[bytes, bytes]
    ) -> None:
        right, wrong = contents
        sha256 = hashlib.sha256(right).hexdigest()
        layout = StoreLayout(tmp_path)
        with PayloadServer({"file": wrong}) as server:
            file = server.remote_file("file", sha256=sha256)
            with pytest.raises(IntegrityError) as caught:
                fetch_file(layout, file, OPTIONS, None, StopSignal())
            assert server.sent_bytes == len(wrong)
        assert caught.value.facts == {
            "path": "file",
            "expected": sha256,
            "found": hashlib.sha256(wrong).hexdigest(),
        }
        assert not layout.blobs.exists()
        assert not any(layout.parts.iterdir())

    def test_a_page_of_the_right_size_is_noticed_by_its_hash(
        self, tmp_path: Path, contents: tuple[bytes, bytes]
    ) -> None:
        page = PAGE.ljust(len(contents[0]))
        sha256 = hashlib.sha256(contents[0]).hexdigest()
        with PayloadServer({"file": page}) as server:
            file = server.remote_file("file", sha256=sha256)
            with pytest.raises(IntegrityError):
                fetch_file(StoreLayout(tmp_path), file, OPTIONS, None, StopSignal())

    def test_another_version_midway_is_fetched_anew_once(
        self, tmp_path: Path, contents: tuple[bytes, bytes]
    ) -> None:
        old, new = contents[1], contents[0]
        sha256 = hashlib.sha256(new).hexdigest()

        def plan(number: int, request: Request) -> Fault:
            return Fault(content=old, drop_after=MB) if number < 4 else Fault(etag='"two"')

        layout = StoreLayout(tmp_path)
        with PayloadServer({"file": new}, plan) as server:
            file = server.remote_file("file", sha256=sha256)
            assert fetch_file(layout, file, OPTIONS, None, StopSignal()) == sha256
        assert layout.blob(sha256).read_bytes() == new

    def test_a_version_that_never_comes_back_ends_after_one_restart(
        self, tmp_path: Path, contents: tuple[bytes, bytes]
    ) -> None:
        old, new = contents
        sha256 = hashlib.sha256(old).hexdigest()

        def plan(number: int, request: Request) -> Fault:
            return Fault(drop_after=MB) if number < 4 else Fault(content=new, etag='"two"')

        layout = StoreLayout(tmp_path)
        with PayloadServer({"file": old}, plan) as server:
            file = server.remote_file("file", sha256=sha256)
            with pytest.raises(IntegrityError):
                fetch_file(layout, file, OPTIONS, None, StopSignal())
            assert server.sent_bytes < 4 * len(old)
        assert not any(layout.parts.iterdir())


def test_versions_without_end_do_not_restart_without_end(tmp_path: Path) -> None:
    content, _ = content_of(SIZES["small"])

    def plan(number: int, request: Request) -> Fault:
        return Fault(etag=f'"{number}"', drop_after=100_000)

    with PayloadServer({"file": content}, plan) as server:
        file = server.remote_file("file", sha256="0" * 64)
        with pytest.raises(IntegrityError):
            fetch_file(StoreLayout(tmp_path), file, OPTIONS, None, StopSignal())
        assert len(server.requests) < 30


def test_a_server_that_asks_to_wait_is_left_alone(tmp_path: Path) -> None:
    content, sha256 = content_of(SIZES["quick"])
    times: list[float] = []

    def plan(number: int, request: Request) -> Fault | None:
        times.append(time.monotonic())
        if number == 1:
            return Fault(status=429, headers={"Retry-After": "1"})
        # The other connections have reason to ask again meanwhile.
        return Fault(drop_after=MB)

    with PayloadServer({"file": content}, plan, bytes_per_s=40e6) as server:
        file = server.remote_file("file", sha256=sha256)
        assert fetch_file(StoreLayout(tmp_path), file, OPTIONS, None, StopSignal()) == sha256
    asked_for = times[1]
    early = [x for x in times if asked_for + 0.1 < x < asked_for + 1]
    assert early == []


def test_a_server_that_allows_one_connection_gets_one(tmp_path: Path) -> None:
    content, sha256 = content_of(SIZES["quick"])

    def plan(number: int, request: Request) -> Fault | None:
        return None if request.client == server.requests[0].client else Fault(status=429)

    with PayloadServer({"file": content}, plan, bytes_per_s=60e6) as server:
        file = server.remote_file("file", sha256=sha256)
        assert fetch_file(StoreLayout(tmp_path), file, OPTIONS, None, StopSignal()) == sha256
        assert server.sent_bytes == len(content)


def test_signed_addresses_that_expire_and_a_token_that_stays_home(tmp_path: Path) -> None:
    content, sha256 = content_of(SIZES["quick"])
    valid: set[str] = set()
    used: dict[str, int] = {}

    def sign(number: int, request: Request) -> Fault:
        name = f"blob?signature={number}"
        valid.add(name)
        return Fault(status=302, headers={"Location": cdn.url(name)})

    def serve(number: int, request: Request) -> Fault | None:
        used[request.path] = used.get(request.path, 0) + 1
        sound = request.path in valid and used[request.path] <= 2
        return Fault(drop_after=2 * MB) if sound else Fault(status=403)

    with (
        PayloadServer({"blob": content}, serve, host="localhost") as cdn,
        PayloadServer({"file": content}, sign) as hub,
    ):
        file = hub.remote_file("file", sha256=sha256)
        assert fetch_file(StoreLayout(tmp_path), file, OPTIONS, None, StopSignal()) == sha256
        assert {x.headers["Authorization"] for x in hub.requests} == {"Bearer secret"}
        assert {x.headers["Authorization"] for x in cdn.requests} == {None}
        assert cdn.sent_bytes == len(content)
        assert hub.sent_bytes == 0


def test_an_outage_is_survived(tmp_path: Path) -> None:
    content, sha256 = content_of(SIZES["quick"])
    down = [5, 6, 7, 8, 9, 10]
    options = replace(OPTIONS, tries=8)
    with PayloadServer(
        {"file": content},
        lambda number, _: Fault(drop_after=0) if number in down else Fault(drop_after=3 * MB),
    ) as server:
        file = server.remote_file("file", sha256=sha256)
        assert fetch_file(StoreLayout(tmp_path), file, options, None, StopSignal()) == sha256
        assert server.sent_bytes == len(content)
