"""A small real model, a hub of our own, and the command line in this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from qh_chat import cli
from tests.support.cli import write_tiny_model
from tests.support.hub_fixtures import hub, hub_server

__all__ = ["hub", "hub_server"]


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
