"""A small HTTP server for files, with faults; counts every byte of payload that it sends.

In a test it runs in threads of the test's process; as a program it serves one file and prints its
port: `python -m tests.support.payload_server FILE`.
"""

from __future__ import annotations

import http.server
import mmap
import re
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, Self

from qh_runtime.store.transfer import RemoteFile

__all__ = ["Fault", "PayloadServer", "Request"]

_BLOCK = 64 << 10


@dataclass(frozen=True)
class Fault:
    """How one answer differs from the right one.

    Attributes:
        status, headers, body: sent instead of the file, where status is given.
        more_headers: sent beside the right ones.
        drop_after: payload bytes after which the connection is closed, `reset`: with RST.
        stall_after, stall_s: payload bytes after which nothing comes for so long.
        drip: (bytes, seconds): payload comes in such steps.
        ignore_range: 200 and the whole file. range_shift: of the range sent against the one asked.
        content: instead of the file's. declared_size: in Content-Length and Content-Range.
        extra: sent after the body. chunked, no_length: how the end of the body is told.
        etag: instead of the file's.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    more_headers: Mapping[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    reset: bool = False
    stall_after: int | None = None
    stall_s: float = 60.0
    drip: tuple[int, float] | None = None
    ignore_range: bool = False
    range_shift: int = 0
    content: bytes | None = None
    extra: bytes = b""
    chunked: bool = False
    no_length: bool = False
    etag: str | None = None


@dataclass
class Request:
    """One request as it came, from which port, and the payload bytes sent in answer."""

    path: str
    headers: Message
    client: int
    sent_bytes: int = 0

    @property
    def begin(self) -> int:
        """First byte of the range asked for; 0 without one."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        return int(found[1]) if found else 0


Plan = Callable[[int, Request], Fault | None]


class PayloadServer:
    """Serves files at a loopback address until the `with` block ends.

    Args:
        files: path (without the leading slash) to content.
        plan: (number of the request, request) -> fault or None.
        bytes_per_s: cap over all answers.
        host: loopback name to be reached under. send_buffer: of the sockets, bytes.
        tls: wraps accepted sockets.
    """

    def __init__(
        self,
        files: Mapping[str, Any],
        plan: Plan | None = None,
        *,
        bytes_per_s: float | None = None,
        host: str = "127.0.0.1",
        send_buffer: int | None = 128 << 10,
        tls: Callable[[socket.socket], socket.socket] | None = None,
    ) -> None:
        self.files = dict(files)
        self.plan: Plan = plan or (lambda number, request: None)
        self.host = host
        self.requests: list[Request] = []
        self.connections = 0
        self.closing = threading.Event()
        self._send_buffer = send_buffer
        self._bytes_per_s = bytes_per_s
        self._tls = tls
        self._free_at = 0.0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.payload = self
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.close_all()
        self._server.server_close()
        self._thread.join()

    def url(self, path: str) -> str:
        """Where a file is."""
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{self.host}:{self.port}/{path}"

    def remote_file(self, path: str, *, sha256: str = "", git_sha1: str = "") -> RemoteFile:
        """The file as the hub's metadata would name it."""
        return RemoteFile(path, len(self.files[path]), sha256, git_sha1, self.url(path))

    @property
    def sent_bytes(self) -> int:
        """Payload of all answers."""
        return sum(x.sent_bytes for x in self.requests)

    def note(self, request: Request) -> int:
        """Remember a request; returns its number."""
        with self._lock:
            self.requests.append(request)
            return len(self.requests) - 1

    def prepare(self, connection: socket.socket) -> socket.socket:
        """Set up an accepted connection."""
        with self._lock:
            self.connections += 1
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._send_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer)
        return self._tls(connection) if self._tls else connection

    def pace(self, count: int) -> None:
        """Keep to the cap."""
        if self._bytes_per_s is None:
            return
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + count / self._bytes_per_s
            pause = self._free_at - time.monotonic()
        if pause > 0.005:
            self.closing.wait(pause)


class _Server(socketserver.ThreadingTCPServer):
    request_queue_size = 64
    allow_reuse_address = True
    payload: PayloadServer

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._open: set[socket.socket] = set()

    def finish_request(self, request: Any, client_address: Any) -> None:
        connection = self.payload.prepare(request)
        self._open.add(connection)
        try:
            super().finish_request(connection, client_address)
        finally:
            self._open.discard(connection)
            connection.close()

    def close_all(self) -> None:
        """Wake the threads that wait for a client."""
        for connection in list(self._open):
            try:
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError | ValueError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        payload = self.server.payload
        path = self.path.partition("?")[0].lstrip("/")
        request = Request(self.path.lstrip("/"), self.headers, self.client_address[1])
        number = payload.note(request)
        fault = payload.plan(number, request) or Fault()
        content = fault.content if fault.content is not None else payload.files.get(path)
        if fault.status is not None or content is None:
            self._short_answer(fault)
            return
        size = len(content)
        begin, end, status = 0, size, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        etag = fault.etag if fault.etag is not None else '"one"'
        condition = self.headers.get("If-Range")
        if asked and not fault.ignore_range and condition in (None, etag):
            begin, end, status = int(asked[1]), min(int(asked[2]) + 1, size), 206
            begin, end = begin + fault.range_shift, end + fault.range_shift
            if begin >= size:
                self._short_answer(Fault(status=416, headers={"Content-Range": f"bytes */{size}"}))
                return
        self.send_response(status)
        if "Content-Type" not in fault.more_headers:
            self.send_header("Content-Type", "application/octet-stream")
        self.send_header("ETag", etag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        if fault.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif fault.no_length:
            self.send_header("Connection", "close")
            self.close_connection = True
        elif "Content-Length" not in fault.more_headers:
            self.send_header("Content-Length", str(end - begin))
        for name, value in fault.more_headers.items():
            self.send_header(name, value)
        self.end_headers()
        self._send_body(request, fault, memoryview(content)[begin:end])

    def _short_answer(self, fault: Fault) -> None:
        self.send_response(fault.status or 404)
        for name, value in fault.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(fault.body)))
        self.end_headers()
        self.wfile.write(fault.body)

    def _send_body(self, request: Request, fault: Fault, data: memoryview) -> None:
        payload = self.server.payload
        step, pause = fault.drip or (_BLOCK, 0.0)
        for at in range(0, len(data), step):
            block = data[at : at + step]
            if fault.drop_after is not None and request.sent_bytes + len(block) > fault.drop_after:
                self._write(request, fault, block[: fault.drop_after - request.sent_bytes])
                self._drop(fault.reset)
                return
            if (
                fault.stall_after is not None
                and request.sent_bytes + len(block) > fault.stall_after
            ):
                self._write(request, fault, block[: fault.stall_after - request.sent_bytes])
                payload.closing.wait(fault.stall_s)
                self._drop(False)
                return
            self._write(request, fault, block)
            payload.pace(len(block))
            if pause and payload.closing.wait(pause):
                return
        if fault.chunked:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.write(fault.extra)

    def _write(self, request: Request, fault: Fault, block: memoryview) -> None:
        # Before it is sent: a client that has the last byte finds all of them counted.
        request.sent_bytes += len(block)
        if fault.chunked:
            self.wfile.write(f"{len(block):x}\r\n".encode())
        self.wfile.write(block)
        if fault.chunked:
            self.wfile.write(b"\r\n")

    def _drop(self, reset: bool) -> None:
        self.close_connection = True
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def main() -> None:
    """Serve one file, mapped into memory, until standard input ends."""
    with open(sys.argv[1], "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with PayloadServer({"file": content}, send_buffer=None) as server:
        print(server.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
