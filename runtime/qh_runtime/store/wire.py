"""Wire: one connection whose every wait ends: by bytes, by its time limit, or when asked to stop.

Sockets do not block here; each wait is a poll of at most POLL_S, after which the stop is looked
at. Two things cannot be cut into such steps. A name is looked up in a thread of its own, which is
left to end by itself where the resolver hangs; a TLS handshake is ended by shutting its connection
down, see `Dialer.abort`.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import ipaddress
import os
import select
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from qh_runtime.errors import DownloadError

__all__ = ["Dialer", "Place", "Stopped", "TransientError", "Wire", "is_loopback"]

POLL_S = 0.1
# With a bandwidth cap: keeps what waits unread in the kernel small against the cap.
CAPPED_RECEIVE_BYTES = 256 << 10
# Where the address of a proxy names no port.
_PROXY_PORT = 8080


class Stopped(Exception):
    """The end was asked for. Never leaves the store."""


class TransientError(Exception):
    """Another attempt may succeed. Never leaves the store.

    Args:
        reason: one phrase for a person.
        status: HTTP status, or None.
        retry_after_s: what the server asks for.
        slow: bytes came, but so few that the attempt counts as one without progress.
        at_once: the next attempt differs from this one, so it need not wait.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int | None = None,
        retry_after_s: float = 0.0,
        slow: bool = False,
        at_once: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.retry_after_s = retry_after_s
        self.slow = slow
        self.at_once = at_once


@dataclass(frozen=True)
class Place:
    """Where a connection goes: scheme, host, port."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """As it stands in a URL or a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = 443 if self.scheme == "https" else 80
        return host if self.port == usual else f"{host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Wire:
    """A connected socket; http.client reads and writes through it."""

    def __init__(self, sock: socket.socket, idle_s: float, stopped: Callable[[], bool]) -> None:
        self._socket = sock
        self._idle_s = idle_s
        self._stopped = stopped
        # Set while a whole step has a time limit, not just the time without a byte.
        self.deadline: float | None = None
        # Time spent waiting for bytes: what a transfer is called slow by.
        self.waited_s = 0.0
        sock.setblocking(False)

    def readinto(self, buffer: memoryview) -> int:
        """Receive at least one byte; 0 at the end of the connection."""
        while True:
            try:
                return self._socket.recv_into(buffer)
            except (BlockingIOError, ssl.SSLWantReadError):
                self._wait(select.POLLIN)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)

    def sendall(self, data: bytes) -> None:
        """Send everything."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._wait(select.POLLOUT)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)

    def makefile(self, mode: str) -> io.BufferedReader:
        """A buffered reader for one response; closing it leaves the connection open."""
        assert mode == "rb"
        return io.BufferedReader(_Borrowed(self), 8192)

    def has_input(self) -> bool:
        """Whether bytes, or the end of the connection, are waiting."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _wait(self, event: int) -> None:
        start = now = time.monotonic()
        end = start + self._idle_s
        if self.deadline is not None:
            end = min(end, self.deadline)
        poll = select.poll()
        poll.register(self._socket, event)
        try:
            while not poll.poll(max(0.0, min(POLL_S, end - now)) * 1000):
                if self._stopped():
                    raise Stopped
                now = time.monotonic()
                if now >= end:
                    raise TransientError(f"no answer for {now - start:.3g} s")
        finally:
            self.waited_s += time.monotonic() - start


class _Borrowed(io.RawIOBase):
    """Reads from a wire and never closes it."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return self._wire.readinto(buffer)


class Dialer:
    """Opens wires, through the environment's proxy where there is one.

    Args:
        connect_timeout_s: for each of name, connection, proxy and handshake.
        idle_s: time without a byte that the wires allow.
        small_window: keep the kernel's receive buffer small.
        stopped: asked at least each POLL_S.
    """

    def __init__(
        self,
        connect_timeout_s: float,
        idle_s: float,
        stopped: Callable[[], bool],
        *,
        small_window: bool = False,
    ) -> None:
        self._timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._stopped = stopped
        self._small_window = small_window
        self._tls: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        self._handshake: socket.socket | None = None

    def open(self, place: Place) -> Wire:
        """Return a connected wire, with TLS for https.

        Raises:
            TransientError: no connection now. Stopped: asked for.
            DownloadError: the certificate or the proxy setting is refused. Facts: url.
        """
        proxy = _proxy_for(place)
        sock = self._connect(proxy.place if proxy else place)
        try:
            if proxy:
                self._tunnel(sock, proxy, place)
            if place.scheme == "https":
                sock = self._secure(sock, place)
            return Wire(sock, self._idle_s, self._stopped)
        except BaseException:
            sock.close()
            raise

    def abort(self) -> None:
        """End a TLS handshake that is under way in another thread."""
        with self._lock:
            if self._handshake is not None:
                with contextlib.suppress(OSError):
                    self._handshake.shutdown(socket.SHUT_RDWR)

    def _connect(self, place: Place) -> socket.socket:
        problem = f"{place.host}: no address"
        for family, address in self._addresses(place):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                if self._small_window:
                    # Before connecting: the window is agreed on there.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CAPPED_RECEIVE_BYTES)
                sock.settimeout(0)
                self._finish_connect(sock, address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
            except OSError as error:
                sock.close()
                problem = f"{place.host}: {error.strerror or error}"
            except BaseException:
                sock.close()
                raise
        raise TransientError(problem)

    def _finish_connect(self, sock: socket.socket, address: tuple[object, ...]) -> None:
        with contextlib.suppress(BlockingIOError):
            sock.connect(address)
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        end = time.monotonic() + self._timeout_s
        while not poll.poll(POLL_S * 1000):
            if self._stopped():
                raise Stopped
            if time.monotonic() >= end:
                raise OSError(f"no connection within {self._timeout_s:g} s")
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

    def _addresses(self, place: Place) -> list[tuple[int, tuple[object, ...]]]:
        found: list[tuple[int, tuple[object, ...]]] = []
        problem = ""
        done = threading.Event()

        def look_up() -> None:
            nonlocal problem
            try:
                for entry in socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM):
                    found.append((entry[0], entry[4]))
            except (OSError, UnicodeError) as error:
                problem = getattr(error, "strerror", None) or str(error)
            done.set()

        threading.Thread(target=look_up, name="name lookup", daemon=True).start()
        end = time.monotonic() + self._timeout_s
        while not done.wait(POLL_S):
            if self._stopped():
                raise Stopped
            if time.monotonic() >= end:
                raise TransientError(f"{place.host}: no address within {self._timeout_s:g} s")
        if not found:
            raise TransientError(f"{place.host}: {problem}")
        return found

    def _tunnel(self, sock: socket.socket, proxy: _Proxy, place: Place) -> None:
        """Ask a proxy for a connection to a place."""
        host = f"[{place.host}]" if ":" in place.host else place.host
        lines = [f"CONNECT {host}:{place.port} HTTP/1.1", f"Host: {host}:{place.port}"]
        if proxy.authorization:
            lines.append(f"Proxy-Authorization: {proxy.authorization}")
        wire = Wire(sock, self._timeout_s, self._stopped)
        wire.deadline = time.monotonic() + self._timeout_s
        wire.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
        # A TLS server says nothing first, so the buffered reader takes no byte that is not ours.
        response = http.client.HTTPResponse(wire, method="CONNECT")  # type: ignore[arg-type]
        try:
            response.begin()
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise TransientError(f"proxy {proxy.place.authority}: {error}") from error
        if response.status == 200:
            return
        if response.status in (403, 407):
            raise DownloadError(
                f"proxy {proxy.place.authority}: refused {place.authority} "
                f"with status {response.status}",
                hint="check the proxy settings of the environment",
                url=f"{place.scheme}://{place.authority}",
                status=response.status,
            )
        raise TransientError(f"proxy {proxy.place.authority}: status {response.status}")

    def _secure(self, sock: socket.socket, place: Place) -> socket.socket:
        if self._tls is None:
            self._tls = _tls_context()
        # Blocking, so that the check of the certificate is part of it on every platform.
        sock.settimeout(self._timeout_s)
        twin = sock.dup()
        with self._lock:
            self._handshake = twin
        try:
            if self._stopped():
                raise Stopped
            return self._tls.wrap_socket(sock, server_hostname=place.host)
        except ssl.SSLCertVerificationError as error:
            raise DownloadError(
                f"{place.authority}: its certificate is refused: {error.verify_message}",
                hint="check the clock and the certificates of this system",
                url=f"https://{place.authority}",
            ) from error
        except OSError as error:
            if self._stopped():
                raise Stopped from error
            raise TransientError(f"{place.host}: TLS: {error.strerror or error}") from error
        finally:
            with self._lock:
                self._handshake = None
            twin.close()


@dataclass(frozen=True)
class _Proxy:
    place: Place
    authorization: str


def _proxy_for(place: Place) -> _Proxy | None:
    """The environment's proxy for a place; plain http stays on this machine and needs none."""
    if place.scheme != "https" or is_loopback(place.host):
        return None
    proxies = urllib.request.getproxies()
    address = proxies.get("https") or proxies.get("all")
    if not address or urllib.request.proxy_bypass(place.host):
        return None
    try:
        parts = urllib.parse.urlsplit(address if "://" in address else f"http://{address}")
        host, port = parts.hostname, parts.port or _PROXY_PORT
    except ValueError:
        parts, host, port = urllib.parse.urlsplit(""), None, 0
    if parts.scheme != "http" or not host:
        raise DownloadError(
            f"proxy of the environment: expected http://host:port, found scheme {parts.scheme!r}",
            hint="set https_proxy to an http:// proxy, or unset it",
            url=f"{place.scheme}://{place.authority}",
        )
    authorization = ""
    if parts.username is not None:
        user, password = (urllib.parse.unquote(x or "") for x in (parts.username, parts.password))
        encoded = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
        authorization = f"Basic {encoded}"
    return _Proxy(Place("http", host, port), authorization)


def _tls_context() -> ssl.SSLContext:
    """The system's certificates where truststore is there to read them, else OpenSSL's."""
    try:
        import truststore
    except ImportError:
        return ssl.create_default_context()
    context: ssl.SSLContext = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return context
