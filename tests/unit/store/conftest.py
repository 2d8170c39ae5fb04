"""A hub of our own for the tests of this folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qh_runtime.hardware.profile import HardwareProfile, probe
from qh_runtime.store.layout import StoreLayout
from tests.support.hub_stub import HubStub, hub_stub
from tests.unit.store.puller import Puller


@pytest.fixture(scope="session")
def hub_server() -> Iterator[HubStub]:
    """Serves during the whole session; tests take `hub`."""
    with hub_stub() as stub:
        yield stub


@pytest.fixture
def hub(hub_server: HubStub, monkeypatch: pytest.MonkeyPatch, homes: Iterator[Path]) -> HubStub:
    """An empty hub that the client library may ask, without any token."""
    from huggingface_hub import constants

    hub_server.reset()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    tokens = next(homes)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tokens / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tokens / "stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return hub_server


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> HardwareProfile:
    """This machine, measured once."""
    return probe(tmp_path_factory.mktemp("data"))


@pytest.fixture
def store_root(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of stores wait for disks otherwise."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="qh-test-", dir=memory))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def puller(hub: HubStub, store_root: Path, profile: HardwareProfile) -> Puller:
    """Pulls from the hub into an empty store."""
    return Puller(hub, StoreLayout(store_root / "store"), profile)
