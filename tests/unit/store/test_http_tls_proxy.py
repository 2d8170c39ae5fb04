"""One exchange over TLS, and through a proxy."""

from __future__ import annotations

import base64
import contextlib
import http.server
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qh_runtime.errors import DownloadError
from qh_runtime.store.transfer import FetchOptions, RemoteFile
from qh_runtime.store.wire import Stopped, TransientError
from tests.support.payload_server import PayloadServer
from tests.unit.store.exchange import CONTENT, Exchange, exchange, raw_server, wanted


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for this machine with its key, made now."""
    folder = tmp_path_factory.mktemp("tls")
    try:
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
                *("ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
                *("-subj", "/CN=localhost", "-addext"),
                *("subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", "key.pem"),
                *("-out", "cert.pem"),
            ],
            cwd=folder,
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed: no certificate for a server")
    return folder


class TestTls:
    """https against a server whose certificate this process trusts, or does not."""

    @pytest.fixture
    def server(self, certificate: Path) -> Iterator[PayloadServer]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
        with PayloadServer(
            {"file": CONTENT},
            host="localhost",
            tls=lambda raw: context.wrap_socket(raw, server_side=True),
        ) as server:
            yield server

    def test_a_trusted_server(
        self, server: PayloadServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
        tried = Exchange(wanted(server))
        assert tried.get() == CONTENT
        assert tried.get(10, 20) == CONTENT[10:20]
        assert server.connections == 1
        tried.channel.close()

    def test_an_unknown_certificate_is_final(self, server: PayloadServer) -> None:
        with pytest.raises(DownloadError):
            Exchange(wanted(server)).get()
        assert server.requests == []

    def test_no_tls_there(self) -> None:
        with raw_server(lambda connection: connection.sendall(b"hello there\r\n")) as file:
            url = file.url.replace("http:", "https:")
            with pytest.raises(TransientError):
                Exchange(RemoteFile("file", 9, "0" * 64, "", url)).get()

    def test_a_stop_ends_a_handshake(self) -> None:
        silent = FetchOptions(connect_timeout_s=60)
        with raw_server(lambda connection: connection.recv(9999) and time.sleep(0.7)) as file:
            tried = Exchange(
                RemoteFile("file", 9, "0" * 64, "", file.url.replace("http:", "https:")), silent
            )

            def stop() -> None:
                tried.stopped = True
                tried.channel.abort()

            timer = threading.Timer(0.2, stop)
            timer.start()
            start = time.monotonic()
            with pytest.raises(Stopped):
                tried.get()
            assert time.monotonic() - start < 0.9
            timer.join()


class _Proxy(http.server.BaseHTTPRequestHandler):
    """Answers CONNECT: joins the client with the server of the test, whatever name is asked for."""

    seen: list[tuple[str, str | None]]
    target: int
    status = 200

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        self.seen.append((self.path, self.headers["Proxy-Authorization"]))
        self.send_response(self.status)
        self.end_headers()
        self.close_connection = True
        if self.status != 200:
            return
        with socket.create_connection(("127.0.0.1", self.target)) as onward:
            pumps = [
                threading.Thread(target=self.pump, args=pair)
                for pair in ((self.connection, onward), (onward, self.connection))
            ]
            for pump in pumps:
                pump.start()
            for pump in pumps:
                pump.join()

    @staticmethod
    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


class TestProxy:
    """https through the proxy of the environment."""

    @pytest.fixture
    def proxy(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Proxy]]:
        handler = type("Proxy", (_Proxy,), {"seen": [], "target": 0})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("https_proxy", f"http://me:p%40ss@127.0.0.1:{server.server_port}")
        yield handler
        server.shutdown()
        server.server_close()
        thread.join()

    def remote(self) -> RemoteFile:
        # A name that no resolver knows: only the proxy can reach it.
        return RemoteFile("file", len(CONTENT), "0" * 64, "", "https://hub.invalid/file")

    def test_a_tunnel_with_credentials(
        self, proxy: type[_Proxy], certificate: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
        with PayloadServer(
            {"file": CONTENT}, tls=lambda raw: context.wrap_socket(raw, server_side=True)
        ) as server:
            proxy.target = server.port
            tried = Exchange(self.remote())
            # The certificate is this machine's, not hub.invalid's: the name is checked through
            # the tunnel, too.
            with pytest.raises(DownloadError) as caught:
                tried.get()
        assert "certificate" in str(caught.value)
        credentials = base64.b64encode(b"me:p@ss").decode()
        assert proxy.seen == [("hub.invalid:443", f"Basic {credentials}")]

    @pytest.mark.parametrize(("status", "error"), [(407, DownloadError), (502, TransientError)])
    def test_a_proxy_that_refuses(
        self, proxy: type[_Proxy], status: int, error: type[Exception]
    ) -> None:
        proxy.status = status
        with pytest.raises(error) as caught:
            Exchange(self.remote()).get()
        assert "p@ss" not in str(caught.value)

    def test_this_machine_needs_no_proxy(self, proxy: type[_Proxy]) -> None:
        with exchange() as (tried, _):
            assert tried.get(0, 3) == CONTENT[:3]
        assert proxy.seen == []

    def test_a_proxy_of_another_kind_is_refused(
        self, proxy: type[_Proxy], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1080")
        with pytest.raises(DownloadError):
            Exchange(self.remote()).get()
