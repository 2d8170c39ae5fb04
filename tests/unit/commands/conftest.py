"""A small real model, a hub of our own, and the command line in this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from qh_chat import cli
from tests.support.cli import write_tiny_model
from tests.support.hub_stub import HubStub, hub_stub


class Outcome(NamedTuple):
    """What one command line did."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound checkpoint; tests must not change it."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A QH_HOME that nothing was written to yet."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


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


@pytest.fixture
def qh(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Outcome]]:
    """Runs a command line in this process, with `home`; standard input is no terminal."""
    monkeypatch.setenv("QH_HOME", str(home))
    names = ("qh_chat", "qh_runtime", "qh_kernels")
    before = {x: (logging.getLogger(x).handlers[:], logging.getLogger(x).level) for x in names}

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = cli.main(arguments)
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    yield run
    for name, (handlers, level) in before.items():
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            handler.close()
        logger.handlers, logger.level, logger.propagate = handlers, level, True
