"""One exchange with a payload server, or with a server that does as a function says."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from qh_runtime.store.http import Channel, Remote
from qh_runtime.store.transfer import FetchOptions, RemoteFile
from tests.support.payload_server import Fault, PayloadServer, Request

CONTENT = bytes(range(256)) * 64
OPTIONS = FetchOptions(token="secret", connect_timeout_s=2, read_timeout_s=0.3)


def wanted(server: PayloadServer, path: str = "file") -> RemoteFile:
    return RemoteFile(path, len(CONTENT), "0" * 64, "", server.url(path))


class Exchange:
    """A remote file and one connection to it."""

    def __init__(self, file: RemoteFile, options: FetchOptions = OPTIONS) -> None:
        self.stopped = False
        self.remote = Remote(file, options)
        self.channel = Channel(options, lambda: self.stopped)

    def get(self, begin: int = 0, end: int = len(CONTENT)) -> bytes:
        """The bytes of one answer."""
        with self.remote.open(self.channel, begin, end) as body:
            found = bytearray()
            buffer = memoryview(bytearray(5000))
            while body.remaining:
                found += buffer[: body.readinto(buffer)]
            return bytes(found)


@contextlib.contextmanager
def exchange(
    plan: Callable[[int, Request], Fault | None] | Fault | None = None,
    options: FetchOptions = OPTIONS,
) -> Iterator[tuple[Exchange, PayloadServer]]:
    script = (lambda number, request: plan) if isinstance(plan, Fault) else plan
    with PayloadServer({"file": CONTENT}, script) as server:
        tried = Exchange(wanted(server), options)
        try:
            yield tried, server
        finally:
            tried.channel.close()


@contextlib.contextmanager
def raw_server(answer: Callable[[socket.socket], None]) -> Iterator[RemoteFile]:
    """A server that does with each connection what a function says."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    try:
        yield RemoteFile("file", len(CONTENT), "0" * 64, "", f"http://127.0.0.1:{port}/file")
    finally:
        done.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
