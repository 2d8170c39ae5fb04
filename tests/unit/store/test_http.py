"""One exchange: what a server may answer, where the token goes, and that every wait ends."""

from __future__ import annotations

import contextlib
import email.utils
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from qh_runtime.errors import DownloadError
from qh_runtime.store import http as http_module
from qh_runtime.store.http import Remote
from qh_runtime.store.transfer import FetchOptions, RemoteFile
from qh_runtime.store.wire import Stopped, TransientError
from tests.support.payload_server import Fault, PayloadServer
from tests.unit.store.exchange import CONTENT, OPTIONS, Exchange, exchange, raw_server


def test_ranges_over_one_connection() -> None:
    with exchange() as (tried, server):
        assert tried.get(0, 10) == CONTENT[:10]
        assert tried.get(300, 16000) == CONTENT[300:16000]
        assert tried.get(len(CONTENT) - 1) == CONTENT[-1:]
        assert server.connections == 1
        headers = server.requests[1].headers
        assert headers["Range"] == "bytes=300-15999"
        assert headers["If-Range"] == '"one"'
        assert headers["Accept-Encoding"] == "identity"
        assert headers["Authorization"] == "Bearer secret"


def test_a_body_in_chunks_and_one_that_ends_with_the_connection() -> None:
    for fault in (Fault(chunked=True), Fault(no_length=True)):
        with exchange(fault) as (tried, _):
            assert tried.get(100, 9000) == CONTENT[100:9000]
            assert tried.get(0, 7) == CONTENT[:7]


def test_a_kept_connection_that_the_server_closed_is_opened_again() -> None:
    with exchange() as (tried, server):
        assert tried.get(0, 10) == CONTENT[:10]
        server._server.close_all()
        assert tried.get(10, 20) == CONTENT[10:20]
        assert server.connections == 2


def test_bytes_after_the_end_of_an_answer_are_not_the_next_one() -> None:
    with exchange(Fault(extra=b"HTTP/1.1 200 OK\r\n\r\n" * 900)) as (tried, _):
        assert tried.get(0, 16000) == CONTENT[:16000]
        wire = tried.channel._wire
        assert wire is not None
        while not wire.has_input():
            time.sleep(0.001)
        assert tried.get(16000, 16300) == CONTENT[16000:16300]


@pytest.mark.parametrize("reset", [False, True])
def test_what_came_before_a_drop_is_good(reset: bool) -> None:
    with exchange(Fault(drop_after=9000, reset=reset)) as (tried, _):
        buffer = memoryview(bytearray(len(CONTENT)))
        count = 0
        with tried.remote.open(tried.channel, 0, len(CONTENT)) as body:
            with contextlib.suppress(TransientError):
                while count <= len(buffer):
                    count += body.readinto(buffer[count:])
            assert body.remaining == len(CONTENT) - count > 0
        assert buffer[:count] == CONTENT[:count]
        assert reset or count == 9000


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (408, {}, 0),
        (429, {"Retry-After": "7"}, 7),
        (500, {}, 0),
        (502, {"Retry-After": "nonsense"}, 0),
        (503, {"Retry-After": "3"}, 3),
        (504, {"Retry-After": "-3"}, 0),
    ],
)
def test_answers_worth_another_attempt(
    status: int, headers: dict[str, str], expected: float
) -> None:
    with (
        exchange(Fault(status=status, headers=headers)) as (tried, _),
        pytest.raises(TransientError) as caught,
    ):
        tried.get()
    assert (caught.value.status, caught.value.retry_after_s) == (status, expected)


def test_retry_after_may_be_a_date_of_the_servers_clock() -> None:
    # http.server sends a Date header of its own.
    when = email.utils.formatdate(time.time() + 90, usegmt=True)
    with (
        exchange(Fault(status=503, headers={"Retry-After": when})) as (tried, _),
        pytest.raises(TransientError) as caught,
    ):
        tried.get()
    assert 85 <= caught.value.retry_after_s <= 91


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 304])
def test_final_answers_name_file_and_status(status: int) -> None:
    with (
        exchange(Fault(status=status)) as (tried, server),
        pytest.raises(DownloadError) as caught,
    ):
        tried.get()
    assert caught.value.facts["status"] == status
    assert caught.value.facts["file"] == "file"
    assert caught.value.facts["url"] == server.url("file")
    assert caught.value.hint


@pytest.mark.parametrize(
    "fault",
    [
        Fault(more_headers={"Content-Encoding": "gzip"}),
        Fault(content=CONTENT + b"more"),
        Fault(content=CONTENT + b"more", ignore_range=True),
        Fault(content=b"<html>log in</html>", ignore_range=True),
        Fault(
            ignore_range=True,
            no_length=True,
            more_headers={"Content-Type": "text/html"},
            content=b"<html>",
        ),
        Fault(status=416, headers={"Content-Range": "bytes */99"}),
        Fault(status=429, headers={"Retry-After": "86400"}),
    ],
    ids=["gzip", "size", "whole size", "page", "page without length", "416", "patience"],
)
def test_answers_that_are_refused(fault: Fault) -> None:
    with exchange(fault) as (tried, _), pytest.raises(DownloadError):
        tried.get()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(range_shift=1),
        Fault(range_shift=-1),
        Fault(more_headers={"Content-Length": "3"}),
        Fault(status=206, body=b"x" * 200),
        Fault(status=206, body=b"x" * 200, headers={"Content-Range": "bytes 100-299/*"}),
        Fault(status=206, body=b"x" * 200, headers={"Content-Range": "bytes 100-0x12b/16384"}),
        Fault(status=416),
    ],
    ids=["later", "earlier", "length", "none", "no size", "broken", "416"],
)
def test_after_a_wrong_range_the_whole_file_is_asked_for(fault: Fault) -> None:
    with exchange(lambda number, _: fault if number == 0 else None) as (tried, server):
        with pytest.raises(TransientError) as caught:
            tried.get(100, 300)
        assert caught.value.at_once
        with tried.remote.open(tried.channel, 100, 300) as body:
            assert body.whole
            assert body.remaining == len(CONTENT)
        assert "Range" not in server.requests[1].headers


def test_a_server_that_sends_ranges_unasked_is_refused() -> None:
    answer = Fault(status=206, headers={"Content-Range": "bytes 0-2/16384"}, body=b"abc")
    with exchange(answer) as (tried, _):
        with pytest.raises(TransientError):
            tried.get()
        with pytest.raises(DownloadError):
            tried.get()


def test_another_etag_is_noticed_and_then_asked_for() -> None:
    etags = ['"one"', '"two"', '"two"']
    with exchange(lambda number, _: Fault(etag=etags[number])) as (tried, server):
        tried.get(0, 10)
        with pytest.raises(TransientError) as caught:
            tried.get(10, 20)
        assert caught.value.at_once
        assert tried.remote.etag_changes == 1
        assert tried.get(10, 20) == CONTENT[10:20]
        assert server.requests[2].headers["If-Range"] == '"two"'


def test_caches_that_disagree_on_the_etag_do_not_stop_a_transfer() -> None:
    """After a few changes the condition is no longer sent; the hash decides."""
    with exchange(lambda number, _: Fault(etag=f'"{number}"')) as (tried, _):
        failures = 0
        for begin in range(0, 100, 10):
            try:
                assert tried.get(begin, begin + 10) == CONTENT[begin : begin + 10]
            except TransientError:
                failures += 1
        assert failures <= 3


def test_a_weak_etag_is_no_condition() -> None:
    with exchange(Fault(etag='W/"one"')) as (tried, server):
        tried.get(0, 10)
        tried.get(10, 20)
        assert "If-Range" not in server.requests[1].headers


class TestRedirects:
    """Two servers of two names: the hub, and where it keeps large files."""

    @pytest.fixture
    def cdn(self) -> Iterator[PayloadServer]:
        with PayloadServer({"blob": CONTENT}, host="localhost") as server:
            yield server

    def test_the_token_stays_with_the_first_host(self, cdn: PayloadServer) -> None:
        location = {"Location": cdn.url("blob?signature=hidden")}
        with exchange(Fault(status=302, headers=location)) as (tried, hub):
            assert tried.get(5, 50) == CONTENT[5:50]
            assert hub.requests[0].headers["Authorization"] == "Bearer secret"
            assert "Authorization" not in cdn.requests[0].headers
            assert cdn.requests[0].path == "blob?signature=hidden"
            assert cdn.requests[0].headers["Range"] == "bytes=5-49"
            # The target is remembered: the hub is asked once.
            assert tried.get(50, 60) == CONTENT[50:60]
            assert (len(hub.requests), len(cdn.requests), cdn.connections) == (1, 2, 1)
            assert "Authorization" not in cdn.requests[1].headers

    def test_another_port_is_another_host(self) -> None:
        with PayloadServer({"blob": CONTENT}) as other:
            location = {"Location": other.url("blob")}
            with exchange(Fault(status=307, headers=location)) as (tried, _):
                assert tried.get(0, 9) == CONTENT[:9]
            assert "Authorization" not in other.requests[0].headers

    def test_the_token_is_gone_for_ever_after_crossing(self, cdn: PayloadServer) -> None:
        with exchange() as (tried, hub):
            back = {"Location": hub.url("file?again")}
            cdn.plan = lambda number, _: Fault(status=302, headers=back)
            away = {"Location": cdn.url("blob")}
            hub.plan = lambda number, _: Fault(status=302, headers=away) if number == 0 else None
            assert tried.get(0, 9) == CONTENT[:9]
            assert tried.get(9, 12) == CONTENT[9:12]
            assert [x.headers["Authorization"] for x in hub.requests] == [
                "Bearer secret",
                None,
                None,
            ]

    def test_the_token_goes_along_on_the_same_host(self) -> None:
        location = {"Location": "/file?moved"}
        with exchange(
            lambda number, _: Fault(status=308, headers=location) if number == 0 else None
        ) as (tried, hub):
            assert tried.get(0, 9) == CONTENT[:9]
            assert hub.requests[1].path == "file?moved"
            assert hub.requests[1].headers["Authorization"] == "Bearer secret"

    def test_an_expired_address_is_asked_for_anew(self, cdn: PayloadServer) -> None:
        location = {"Location": cdn.url("blob")}
        with exchange(Fault(status=302, headers=location)) as (tried, hub):
            cdn.plan = lambda number, _: Fault(status=403) if number == 1 else None
            tried.get(0, 9)
            with pytest.raises(TransientError) as caught:
                tried.get(9, 20)
            assert caught.value.at_once
            assert tried.get(9, 20) == CONTENT[9:20]
            assert len(hub.requests) == 2

    def test_a_new_address_that_is_refused_is_final(self, cdn: PayloadServer) -> None:
        cdn.plan = lambda number, _: Fault(status=403)
        location = {"Location": cdn.url("blob?signature=hidden")}
        with (
            exchange(Fault(status=302, headers=location)) as (tried, _),
            pytest.raises(DownloadError) as caught,
        ):
            tried.get()
        assert caught.value.facts["status"] == 403
        assert "hidden" not in str(caught.value)
        assert "hidden" not in str(caught.value.facts)

    def test_a_loop_ends(self) -> None:
        with exchange(Fault(status=302, headers={"Location": "/file"})) as (tried, hub):
            with pytest.raises(DownloadError):
                tried.get()
            assert len(hub.requests) == http_module.MAX_REDIRECTS + 1

    @pytest.mark.parametrize(
        "location",
        [
            "",
            "http://example.com/blob",
            "ftp://example.com/blob",
            "file:///etc/passwd",
            "https://user:pass@example.com/blob",
            "https://exa mple.com/blob",
            "https://example.com/a b",
            "https://example.com:99999/blob",
            "https://[::1/blob",
            "https://example.com/" + "a" * 9000,
        ],
    )
    def test_addresses_that_are_not_asked(self, location: str) -> None:
        with (
            exchange(Fault(status=302, headers={"Location": location})) as (tried, _),
            pytest.raises(DownloadError),
        ):
            tried.get()


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/file",
        "http://127.0.0.1.example.com/file",
        "https://example.com\r\nX: 1/file",
        "https://example.com/file\r\nX: 1",
        "https:///file",
        "//example.com/file",
    ],
)
def test_urls_that_are_not_asked(url: str) -> None:
    with pytest.raises(DownloadError):
        Remote(RemoteFile("file", 3, "0" * 64, "", url), OPTIONS)


def test_no_way_from_another_machine_to_this_one() -> None:
    remote = Remote(RemoteFile("file", 3, "0" * 64, "", "https://example.com/file"), OPTIONS)
    for target in ("http://127.0.0.1/x", "https://localhost/x", "https://[::1]:8080/x"):
        with pytest.raises(DownloadError):
            remote._checked_url(target)


def test_a_token_that_breaks_a_header_is_refused() -> None:
    file = RemoteFile("file", 3, "0" * 64, "", "https://example.com/file")
    with pytest.raises(DownloadError) as caught:
        Remote(file, FetchOptions(token="abc\r\nX: 1"))
    assert "abc" not in str(caught.value)


def endless_header(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X: 1\r\n" * 1000)


def slow_header(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X")
        time.sleep(0.02)


@pytest.mark.parametrize(
    "answer",
    [
        endless_header,
        slow_header,
        lambda connection: connection.recv(4096) and connection.sendall(b"nonsense\r\n\r\n"),
        lambda connection: connection.recv(4096) and connection.sendall(b"HTTP/1.1 2 OK\r\n\r\n"),
        lambda connection: connection.recv(4096) and connection.sendall(b"HTTP/9.9 200 OK\r\n\r\n"),
        lambda connection: connection.recv(4096) and time.sleep(0.7),
        lambda connection: None,
    ],
    ids=["endless header", "slow header", "nonsense", "status", "version", "silence", "closed"],
)
def test_broken_heads_end_in_time(answer: Callable[[socket.socket], None]) -> None:
    with raw_server(answer) as file:
        tried = Exchange(file)
        start = time.monotonic()
        with pytest.raises(TransientError):
            tried.get()
        assert time.monotonic() - start < 4 * OPTIONS.read_timeout_s
        assert tried.channel._wire is None


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    tried = Exchange(RemoteFile("file", 9, "0" * 64, "", f"http://127.0.0.1:{port}/file"))
    with pytest.raises(TransientError):
        tried.get()


@pytest.mark.parametrize(
    "fault", [Fault(stall_after=0), Fault(stall_after=9000), Fault(drip=(50, 0.05))]
)
def test_a_stalled_or_dripping_body_ends_in_time(fault: Fault) -> None:
    with exchange(fault) as (tried, _):
        start = time.monotonic()
        with pytest.raises(TransientError) as caught:
            tried.get()
        assert caught.value.slow == (fault.drip is not None)
        assert time.monotonic() - start < 4 * OPTIONS.read_timeout_s


def test_a_stop_ends_a_wait() -> None:
    patient = FetchOptions(read_timeout_s=60)
    with exchange(Fault(stall_after=100), patient) as (tried, _):
        timer = threading.Timer(0.15, lambda: setattr(tried, "stopped", True))
        timer.start()
        start = time.monotonic()
        with pytest.raises(Stopped):
            tried.get()
        assert time.monotonic() - start < 1
        timer.join()
