"""Fixtures of the architecture tests."""

from __future__ import annotations

import pytest

from tests.support.tiny_checkpoint import TinyCheckpoints


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoints:
    """Tiny checkpoints, each written once per session."""
    return TinyCheckpoints(tmp_path_factory.mktemp("tiny"))
