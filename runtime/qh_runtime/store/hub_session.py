"""Bounds for the answers of a hub, which its library reads into memory whatever their size."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qh_runtime.errors import StoreError

__all__ = ["AnswerRefused", "bounded_session"]

# A repository with 50,000 files takes about 15 MB of JSON.
MAX_ANSWER_BYTES = 32 << 20
MAX_ANSWER_S = 60.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# The library has one session per process; questions wait for each other.
_lock = threading.Lock()


class AnswerRefused(Exception):
    """An answer broke a bound; never leaves the hub's files."""


@contextmanager
def bounded_session() -> Iterator[None]:
    """Within it, answers to the library are uncompressed, bounded in bytes and time, and encrypted.

    Raises:
        StoreError: a version of the library that has no such session.
    """
    import huggingface_hub
    from huggingface_hub import get_session

    with _lock:
        session: Any = get_session()
        hooks = getattr(session, "event_hooks", None)
        if hooks is None:
            raise StoreError(
                f"huggingface-hub: expected version 1.0 or newer, found "
                f"{huggingface_hub.__version__}",
                hint="pip install --upgrade huggingface-hub",
            )
        # Both are called for each step of a redirect.
        hooks["request"].append(_encrypted)
        hooks["response"].append(_bound)
        try:
            yield
        finally:
            hooks["request"].remove(_encrypted)
            hooks["response"].remove(_bound)


def _encrypted(request: Any) -> None:
    """Refuses a request that would leave this machine in the clear."""
    if request.url.scheme != "https" and request.url.host not in _LOOPBACK:
        raise AnswerRefused(f"redirected to {request.url.scheme}, expected https")


def _bound(response: Any) -> None:
    """Checks the head of an answer and puts a counter before its body, which is not read yet."""
    encoding = response.headers.get("content-encoding", "identity").lower()
    if encoding not in ("", "identity"):
        raise AnswerRefused("a compressed answer, expected none")
    # The library's HTTP package changed its name; its streams must derive from its own class.
    package = importlib.import_module(type(response).__module__.partition(".")[0])
    kind = type("BoundedStream", (_Bounded, package.SyncByteStream), {})
    response.stream = kind(response.stream)


class _Bounded:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        begin, count = time.monotonic(), 0
        for chunk in self._stream:
            count += len(chunk)
            if count > MAX_ANSWER_BYTES:
                raise AnswerRefused(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
            if time.monotonic() - begin > MAX_ANSWER_S:
                raise AnswerRefused(f"an answer that took more than {MAX_ANSWER_S:.0f} s")
            yield chunk

    def close(self) -> None:
        self._stream.close()
