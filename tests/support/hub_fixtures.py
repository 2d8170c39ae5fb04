"""Fixtures of a hub of our own; a conftest.py that imports both names has them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub_stub import HubStub, hub_stub

__all__ = ["hub", "hub_server"]


@pytest.fixture(scope="session")
def hub_server() -> Iterator[HubStub]:
    """Serves during the whole session; tests take `hub`."""
    with hub_stub() as stub:
        yield stub


@pytest.fixture
def hub(hub_server: HubStub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubStub:
    """An empty hub that HF_ENDPOINT names, for processes of their own and for this one."""
    from huggingface_hub import constants

    hub_server.reset()
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("HF_", "HUGGING")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", hub_server.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    at_hub = f"{hub_server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", hub_server.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", at_hub)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "tokens"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return hub_server
