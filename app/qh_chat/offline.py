"""`--offline`: from the call of `go_offline` on, this process opens no network socket.

An audit hook sees every socket that Python code makes and every name it looks up, in whatever
library, and cannot be removed again. Sockets between processes of this machine stay allowed: the
event loop of the screens wakes itself through one.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from qh_runtime.errors import QhError

__all__ = ["OfflineError", "go_offline", "network_is_refused", "require_network"]

_LOOKUPS = frozenset(
    {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"}
)
_installed = False


class OfflineError(QhError):
    """Something tried to reach the network. Facts: event."""


def go_offline() -> None:
    """Refuse network sockets and name look-ups until the process ends.

    Children learn of it through HF_HUB_OFFLINE, which hub libraries respect.
    """
    global _installed
    os.environ["HF_HUB_OFFLINE"] = "1"
    if not _installed:
        _installed = True
        sys.addaudithook(_refuse)


def network_is_refused() -> bool:
    """Whether `go_offline` was called in this process."""
    return _installed


def require_network(what: str, *, offline: bool) -> None:
    """Return normally if what is asked for may reach the network.

    Raises:
        OfflineError: --offline was given. Facts: event.
    """
    if offline:
        raise OfflineError(
            f"{what}: needs the network, which --offline refuses",
            hint="leave --offline out to allow it",
            event=what,
        )


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    if not event.startswith("socket."):
        return
    if event in _LOOKUPS:
        raise _error(event)
    if event == "socket.__new__":
        import socket

        # args: socket, family, type, protocol; family -1 is the default, AF_INET.
        local = getattr(socket, "AF_UNIX", None)
        if args[1] != local:
            raise _error(event)


def _error(event: str) -> OfflineError:
    return OfflineError(
        f"network ({event}): expected none with --offline, found an attempt",
        hint="leave --offline out to allow it",
        event=event,
    )
