"""Rules for every test: no network, an own QH_HOME, fixed seeds."""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A job in the background of a shell has ctrl+c ignored, one under nohup SIGHUP, and so would have
# every process that the tests start, some of them to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Paths for the QH_HOME of each test, one after another.

    In a folder of their own: pytest reads the whole one that it numbers in, for each test again.
    """
    place = tmp_path_factory.mktemp("homes")
    return (place / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def isolated(homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has its own settings, history and store, fixed seeds and no way to the network."""
    home = next(homes)
    home.mkdir()
    monkeypatch.setenv("QH_HOME", str(home))
    for name in ("QH_LOG", "QH_THREADS", "QH_FORCE_ISA"):
        monkeypatch.delenv(name, raising=False)
    random.seed(20261123)
    np.random.seed(20261123)

    connect = socket.socket.connect

    def loopback_only(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = address[0]
            if host not in ("127.0.0.1", "::1", "localhost"):
                raise RuntimeError(f"a test tried to reach {address}: tests have no network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", loopback_only)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The project's collection of test data, which a stranger's clone does not have."""
    if not SHARED.is_dir():
        pytest.skip("the project's test data folder (../shared) is not beside this checkout")
    return SHARED
