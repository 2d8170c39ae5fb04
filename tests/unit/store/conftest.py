"""A hub of our own for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub_stub import HubStub, hub_stub


@pytest.fixture(scope="session")
def hub_server() -> Iterator[HubStub]:
    """Serves during the whole session; tests take `hub`."""
    with hub_stub() as stub:
        yield stub


@pytest.fixture
def hub(
    hub_server: HubStub, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> HubStub:
    """An empty hub that the client library may ask, without any token."""
    from huggingface_hub import constants

    hub_server.reset()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    tokens: Path = tmp_path_factory.mktemp("hf_home")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tokens / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tokens / "stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return hub_server
