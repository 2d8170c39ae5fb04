"""A small real model for processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import write_tiny_model


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
