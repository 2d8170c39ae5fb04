"""One checked HTTP exchange: ask for a range of a file, follow redirects, believe nothing.

http.client frames the answers and the bytes go from the socket into the caller's buffer. The hub
library's own client copies every 64 KiB through its parser: 465-600 MB/s with SHA-256 on loopback
against 1,110-1,160 MB/s this way (2 cores, November 2026).

Rules of an exchange:
    - https; plain http between loopback addresses only. At most MAX_REDIRECTS redirects;
    - the token goes to the scheme, host and port of the file's own url. Once a redirect leaves
      them it is dropped, also where a later one leads back;
    - a redirect's target is remembered for the next ranges; refused there, the file's own url is
      asked again (signed addresses expire);
    - identity encoding. 206 must have exactly the range asked for and the size of the file; 200
      means the server sends the whole file, and its length must be the file's;
    - If-Range with the first strong etag, so that parts of two versions are noticed. Etags may
      differ between caches, so the hash of the whole decides;
    - what may succeed next time is a TransientError, everything else a DownloadError.
"""

from __future__ import annotations

import email.utils
import http.client
import re
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from qh_runtime.errors import DownloadError
from qh_runtime.store.transfer import FetchOptions, RemoteFile
from qh_runtime.store.wire import Dialer, Place, TransientError, Wire, is_loopback

__all__ = ["Body", "Channel", "Remote"]

MAX_REDIRECTS = 8
MAX_URL_CHARS = 8192
# A server that asks for more patience than this gets an error that says so.
MAX_RETRY_AFTER_S = 600.0
# Fewer bytes while waiting as long as the read timeout, and the connection counts as stalled.
MIN_BYTES_PER_S = 1024
# After so many different etags they mean caches, not versions: no If-Range from then on.
MAX_ETAG_CHANGES = 2

_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}")
_TARGET = re.compile(r"/[!-~]*")
_TOKEN = re.compile(r"[!-~]{1,4096}")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19}|\*)")
_STRONG_ETAG = re.compile(r'"[!#-~]{1,1024}"')
_REDIRECTS = {301, 302, 303, 307, 308}
_TRANSIENT = {408, 425, 429}
# What an expired signed address answers.
_EXPIRED = {400, 401, 403, 404, 410}
_HINTS = {
    401: "log in with a token that may read this repository",
    403: "accept the terms on the model's page, and use a token that may read it",
    404: "the file is gone from the hub; pull the model again",
}


@dataclass(frozen=True)
class _Url:
    place: Place
    target: str

    @property
    def shown(self) -> str:
        """For messages: without the query, which may hold a signature."""
        path = self.target.partition("?")[0]
        return f"{self.place.scheme}://{self.place.authority}{path}"[:300]


class Channel:
    """At most one connection, kept open for as long as the next request goes to the same place.

    Args:
        options: time limits; the cap decides the receive window.
        stopped: asked during every wait.
        floor: bytes/s below which a connection is worth replacing; others are much faster.
    """

    def __init__(
        self,
        options: FetchOptions,
        stopped: Callable[[], bool],
        floor: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.floor = floor
        self._options = options
        self._dialer = Dialer(
            options.connect_timeout_s,
            options.read_timeout_s,
            stopped,
            small_window=options.bytes_per_s is not None,
        )
        self._place: Place | None = None
        self._wire: Wire | None = None

    def close(self) -> None:
        """Close the connection."""
        if self._wire is not None:
            self._wire.close()
        self._wire = self._place = None

    def abort(self) -> None:
        """End what another thread waits for in this channel and cannot poll."""
        self._dialer.abort()

    @property
    def waited_s(self) -> float:
        """Time the present connection has waited for bytes."""
        return self._wire.waited_s if self._wire is not None else 0.0

    def request(self, url: _Url, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Send a request and return the answer's head.

        Raises:
            TransientError, Stopped, DownloadError: as `Dialer.open`, and for a broken answer.
        """
        # Bytes that wait here are the rest of an answer that was longer than it said, or the end.
        if self._place == url.place and self._wire is not None and not self._wire.has_input():
            try:
                return self._exchange(url, headers)
            except TransientError as error:
                # A kept connection that the server has closed in the meantime says nothing.
                if not isinstance(error.__cause__, ConnectionError | ssl.SSLError):
                    raise
        self.close()
        self._wire = self._dialer.open(url.place)
        self._place = url.place
        return self._exchange(url, headers)

    def _exchange(self, url: _Url, headers: dict[str, str]) -> http.client.HTTPResponse:
        assert self._wire is not None
        self._wire.deadline = time.monotonic() + self._options.read_timeout_s
        lines = [f"GET {url.target} HTTP/1.1", *(f"{name}: {x}" for name, x in headers.items())]
        # Its counterpart HTTPConnection would close the connection under an answer that ends with
        # it. Everything in these lines was checked: the url, the token, the etag.
        response = http.client.HTTPResponse(self._wire, method="GET")  # type: ignore[arg-type]
        try:
            self._wire.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
            response.begin()
        except BaseException as error:
            response.close()
            self.close()
            raise_transient(error, url.place.host)
            raise
        self._wire.deadline = None
        return response

    def receive(self, buffer: memoryview) -> int:
        """Receive bytes past http.client's buffer; 0 at the end of the connection."""
        assert self._wire is not None
        return self._wire.readinto(buffer)


def raise_transient(error: BaseException, host: str) -> None:
    """Raise a TransientError for what a broken connection or answer raises; else return."""
    if isinstance(error, http.client.HTTPException):
        raise TransientError(f"{host}: broken answer: {type(error).__name__}") from error
    if isinstance(error, OSError):
        raise TransientError(f"{host}: {error.strerror or error}") from error
    if isinstance(error, ValueError):
        raise TransientError(f"{host}: broken answer: {str(error)[:80]!r}") from error


class Body:
    """The bytes of one answer; a context manager that keeps the connection if all were read.

    Attributes:
        whole: the server sends the file from its start, not the range asked for.
        remaining: bytes still to come.
    """

    def __init__(
        self,
        channel: Channel,
        response: http.client.HTTPResponse,
        host: str,
        length: int,
        whole: bool,
        read_timeout_s: float,
    ) -> None:
        self.whole = whole
        self.remaining = length
        self._channel = channel
        self._response = response
        self._host = host
        self._timeout_s = read_timeout_s
        # Bytes that came with the head wait in http.client's buffer, and chunks need its parser.
        self._buffered = True
        self._window_start_s = channel.waited_s
        self._window_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        keep = self.remaining == 0 and not self._response.chunked and not self._response.will_close
        self._response.close()
        if not keep:
            self._channel.close()

    def readinto(self, view: memoryview) -> int:
        """Receive at least one byte of the rest into view, and at most len(view).

        Raises:
            TransientError: the connection ended, stalled or was slow before the last byte.
                What was returned before is good.
            Stopped: asked for.
        """
        self._check_pace()
        view = view[: self.remaining]
        try:
            count = self._buffered_into(view) if self._buffered else self._channel.receive(view)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise_transient(error, self._host)
            raise
        if count == 0:
            raise TransientError(f"{self._host}: ended {self.remaining} bytes early")
        self.remaining -= count
        self._window_bytes += count
        return count

    def _buffered_into(self, view: memoryview) -> int:
        if self._response.chunked:
            data = self._response.read1(len(view))
        else:
            # One call that takes less than asked for has emptied the buffer, without losing a byte
            # to an error on the way: it returns what is buffered or reads the connection once.
            wanted = min(len(view), 65536)
            data = self._response.fp.read1(wanted)
            self._buffered = len(data) == wanted
        view[: len(data)] = data
        return len(data)

    def _check_pace(self) -> None:
        waited = self._channel.waited_s - self._window_start_s
        if waited < self._timeout_s:
            return
        slow = self._window_bytes < MIN_BYTES_PER_S * self._timeout_s
        if slow or self._window_bytes < self._channel.floor() * self._timeout_s:
            reason = f"{self._host}: only {self._window_bytes} bytes in {waited:.3g} s"
            raise TransientError(reason, slow=slow)
        self._window_start_s += waited
        self._window_bytes = 0


class Remote:
    """One file on its server: what is known of it, shared by all connections that fetch it.

    Args:
        file: what to fetch; its url is checked here.
        options: token and time limits.

    Raises:
        DownloadError: the url or the token is refused. Facts: file, url.
    """

    def __init__(self, file: RemoteFile, options: FetchOptions) -> None:
        self.file = file
        self._options = options
        self._lock = threading.Lock()
        self._local = True
        self._own = self._checked_url(file.url)
        self._local = is_loopback(self._own.place.host)
        self._resolved: tuple[_Url, bool] | None = None
        self._etag = ""
        # Different versions may have been mixed: the hash decides, and one restart is worth it.
        self.etag_changes = 0
        # Off after an answer that shows the server cannot do ranges.
        self._ranges = True
        if options.token is not None and not _TOKEN.fullmatch(options.token):
            raise self._refused(self._own, "a token of plain characters", "another one")

    def open(self, channel: Channel, begin: int, end: int) -> Body:
        """Ask for bytes [begin, end) and return the checked answer.

        Raises:
            TransientError: worth another attempt. Stopped: asked for.
            DownloadError: final. Facts: file, url, and status where there is one.
        """
        with self._lock:
            url, with_token = self._resolved or (self._own, True)
            fresh = self._resolved is None
            etag, ranges = self._etag, self._ranges
        headers = self._headers(begin, end, etag) if ranges else {}
        for _ in range(MAX_REDIRECTS + 1):
            response = channel.request(url, self._all_headers(url, headers, with_token))
            try:
                if response.status not in _REDIRECTS:
                    self._remember(url, with_token)
                    length, whole = self._check(url, response, begin, end, etag, ranges, fresh)
                    host = url.place.host
                    timeout = self._options.read_timeout_s
                    return Body(channel, response, host, length, whole, timeout)
                url, with_token = self._next(url, response, with_token)
            except BaseException:
                channel.close()
                raise
            channel.close()
        raise self._refused(self._own, f"at most {MAX_REDIRECTS} redirects", "more of them")

    def given_up(self, error: TransientError, tries: int) -> DownloadError:
        """The final error after so many attempts in a row without progress."""
        return DownloadError(
            f"{self.file.path} from {self._own.shown}: {tries} attempts in a row brought nothing; "
            f"the last one: {error.reason}",
            hint="check the connection and start again; what has arrived is kept",
            file=self.file.path,
            url=self._own.shown,
            status=error.status,
        )

    def refused_span(self) -> DownloadError:
        """The error for a server that sends whole files where a piece is wanted."""
        return self._refused(self._own, "a part of the file", "the whole file", status=200)

    def _all_headers(self, url: _Url, headers: dict[str, str], with_token: bool) -> dict[str, str]:
        every = {
            "Host": url.place.authority,
            "User-Agent": "qh-chat",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            **headers,
        }
        if with_token and self._options.token is not None:
            every["Authorization"] = f"Bearer {self._options.token}"
        return every

    def _headers(self, begin: int, end: int, etag: str) -> dict[str, str]:
        headers = {"Range": f"bytes={begin}-{end - 1}"}
        if etag and self.etag_changes <= MAX_ETAG_CHANGES:
            headers["If-Range"] = etag
        return headers

    def _next(
        self, url: _Url, response: http.client.HTTPResponse, with_token: bool
    ) -> tuple[_Url, bool]:
        location = response.getheader("Location", "")
        base = f"{url.place.scheme}://{url.place.authority}{url.target}"
        try:
            target = urllib.parse.urldefrag(urllib.parse.urljoin(base, location)).url
        except ValueError:
            target = ""
        if not location:
            raise self._refused(url, "a redirect with a target", "none", status=response.status)
        found = self._checked_url(target)
        return found, with_token and found.place == self._own.place

    def _remember(self, url: _Url, with_token: bool) -> None:
        with self._lock:
            self._resolved = None if url == self._own else (url, with_token)

    def _check(
        self,
        url: _Url,
        response: http.client.HTTPResponse,
        begin: int,
        end: int,
        etag: str,
        ranges: bool,
        fresh: bool,
    ) -> tuple[int, bool]:
        """(bytes to come, whether they are the whole file) of an answer that is no redirect."""
        status = response.status
        if status not in (200, 206):
            self._check_status(url, response, ranges, fresh)
        encoding = response.getheader("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise self._refused(url, "the file as it is", f"it encoded as {encoding[:40]!r}")
        changed = self._note_etag(response.getheader("ETag", ""))
        if status == 206:
            self._check_range(url, response, begin, end, ranges)
            return end - begin, False
        if ranges and changed and etag:
            # Our condition failed; the new version has ranges, too.
            raise TransientError("the file changed on the server", at_once=True)
        self._check_whole(url, response)
        return self.file.size, True

    def _check_status(
        self, url: _Url, response: http.client.HTTPResponse, ranges: bool, fresh: bool
    ) -> None:
        status = response.status
        if status in _TRANSIENT or status >= 500:
            wait_s = _retry_after_s(response)
            if wait_s > MAX_RETRY_AFTER_S:
                raise self._refused(
                    url, "an answer soon", f"a request to wait {wait_s:.0f} s", status=status
                )
            raise TransientError(
                f"{url.place.host}: status {status}", status=status, retry_after_s=wait_s
            )
        if status in _EXPIRED and not fresh:
            with self._lock:
                self._resolved = None
            raise TransientError(f"{url.place.host}: status {status}", status=status, at_once=True)
        if status == 416 and ranges:
            found = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range", ""))
            if found and found[3] not in ("*", str(self.file.size)):
                raise self._refused(url, f"{self.file.size} bytes", f"{found[3]}", status=status)
            self._no_ranges()
            raise TransientError(f"{url.place.host}: status 416", status=status, at_once=True)
        raise self._refused(url, "status 206 or 200", f"{status}", status=status)

    def _check_range(
        self, url: _Url, response: http.client.HTTPResponse, begin: int, end: int, ranges: bool
    ) -> None:
        text = response.getheader("Content-Range", "")
        found = _CONTENT_RANGE.fullmatch(text)
        if found and found[3] not in ("*", str(self.file.size)):
            raise self._refused(url, f"{self.file.size} bytes", found[3], status=206)
        expected = (str(begin), str(end - 1), str(self.file.size))
        length = response.length
        if (
            not ranges
            or not found
            or found.groups() != expected
            or length
            not in (
                None,
                end - begin,
            )
        ):
            # A plain request is what such a server may still answer rightly.
            self._no_ranges()
            if not ranges:
                raise self._refused(url, "status 200", "206", status=206)
            raise TransientError(
                f"{url.place.host}: asked for bytes {begin}-{end - 1}, got {text[:80]!r}",
                status=206,
                at_once=True,
            )

    def _check_whole(self, url: _Url, response: http.client.HTTPResponse) -> None:
        kind = response.getheader("Content-Type", "").partition(";")[0].strip().lower()
        length = response.length
        page = kind == "text/html" and not self.file.path.endswith((".html", ".htm"))
        if length == self.file.size or (length is None and not page):
            return
        found = f"{length} bytes" if length is not None else "a length unknown"
        raise self._refused(
            url,
            f"{self.file.size} bytes",
            f"{found} of type {kind[:60] or 'unknown'!r}",
            status=200,
        )

    def _note_etag(self, etag: str) -> bool:
        """Remember a strong etag; whether it differs from the one remembered before."""
        if not _STRONG_ETAG.fullmatch(etag):
            return False
        with self._lock:
            changed = bool(self._etag) and self._etag != etag
            self._etag = etag
            self.etag_changes += changed
        return changed

    def _no_ranges(self) -> None:
        with self._lock:
            self._ranges = False

    def _checked_url(self, text: str) -> _Url:
        """A url that may be asked, taken apart."""
        shown = text.partition("?")[0][:200]
        try:
            parts = urllib.parse.urlsplit(text)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            parts, host, port = urllib.parse.urlsplit(""), "", None
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        # A file of another machine never leads to a service of this one.
        sound = (
            (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)))
            and (self._local or not is_loopback(host))
            and _HOST.fullmatch(host)
            and _TARGET.fullmatch(target)
            and parts.username is None
            and len(text) <= MAX_URL_CHARS
        )
        if not sound:
            raise DownloadError(
                f"{self.file.path}: address {shown!r}: expected an https address",
                hint="the hub sent an address that is not safe to ask; nothing was fetched from it",
                file=self.file.path,
                url=shown,
                status=None,
            )
        port = port or (443 if parts.scheme == "https" else 80)
        return _Url(Place(parts.scheme, host.lower(), port), target)

    def _refused(
        self, url: _Url, expected: str, found: str, *, status: int | None = None
    ) -> DownloadError:
        hint = _HINTS.get(status or 0, "try again later; what has arrived is kept")
        return DownloadError(
            f"{self.file.path} from {url.shown}: expected {expected}, found {found}",
            hint=hint,
            file=self.file.path,
            url=url.shown,
            status=status,
            expected=expected,
            found=found,
        )


def _retry_after_s(response: http.client.HTTPResponse) -> float:
    """Seconds that a server asks to wait: a number, or a date against its own clock."""
    text = response.getheader("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    try:
        now = email.utils.parsedate_to_datetime(response.getheader("Date", "")).timestamp()
    except (ValueError, TypeError, OverflowError):
        now = time.time()
    return max(0.0, when - now)
