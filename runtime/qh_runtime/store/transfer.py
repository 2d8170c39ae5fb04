"""What the parts of a download say to each other: the file wanted, how far it is, when to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "FetchOptions",
    "OnTransfer",
    "RemoteFile",
    "StopSignal",
    "TransferProgress",
    "TransferState",
]

TransferState = Literal["wait", "fetch", "retry", "verify", "done"]


@dataclass(frozen=True)
class RemoteFile:
    """One file to get, as the hub's metadata names it.

    Attributes:
        path: checked relative name in the repository, "/" between its parts.
        size: bytes.
        sha256: of the content, or "" where the hub knows the git hash only (small files).
        git_sha1: git's blob hash of the content, or "" where sha256 is known.
        url: where its bytes are, before redirects; https, or http to a loopback address.
    """

    path: str
    size: int
    sha256: str
    git_sha1: str
    url: str

    @property
    def key(self) -> str:
        """Names its part, journal and lock."""
        return self.sha256 or f"git-{self.git_sha1}"


@dataclass(frozen=True)
class FetchOptions:
    """How payload is fetched.

    Attributes:
        token: bearer token for the host of the file's url alone, or None.
        connections: ranges of one file that are fetched at the same time.
        bytes_per_s: cap over all connections, or None.
        connect_timeout_s, read_timeout_s: after which a connection counts as stalled.
        tries: attempts in a row that may bring no byte before the file is given up.
        retry_delay_s: the first wait between such attempts; doubled each time, with jitter, at most
            max_delay_s. A Retry-After of the server counts instead where it is longer.
    """

    token: str | None = field(default=None, repr=False)
    connections: int = 4
    bytes_per_s: float | None = None
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 25.0
    tries: int = 8
    retry_delay_s: float = 0.5
    max_delay_s: float = 60.0


@dataclass(frozen=True)
class TransferProgress:
    """How far one file is.

    Attributes:
        path: of the RemoteFile.
        state: "wait" (another process holds it), "fetch", "retry" (a pause after an error, named
            in note), "verify" (hashing), "done".
        done_bytes: complete and on disk, those of earlier runs included.
        total_bytes: size of the file.
        fetched_bytes: payload that came over the network in this run, repeats included.
        note: one sentence for "wait" and "retry", else "".
    """

    path: str
    state: TransferState
    done_bytes: int
    total_bytes: int
    fetched_bytes: int
    note: str = ""


# Called from the thread that called the transfer, at most about ten times a second.
OnTransfer = Callable[[TransferProgress], None]


class StopSignal:
    """Asks a transfer to end soon and keep what there is; any thread. Pause is a stop, too."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def stop(self) -> None:
        """Ask for the end."""
        self._event.set()

    @property
    def stopped(self) -> bool:
        """Whether the end was asked for."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but not longer than until the end is asked for; returns `stopped`."""
        return self._event.wait(seconds)
