"""Fixtures of the oracle tests: tiny checkpoints, and small trained models where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.llama2c import read_version0, sentencepiece_tokenizer, write_folder
from tests.support.tiny_checkpoint import TinyCheckpoints


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoints:
    """Tiny checkpoints, each written once per session."""
    return TinyCheckpoints(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def stories260k(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K of llama2.c as a Hugging Face folder."""
    source = shared_data / "models" / "stories260K"
    if not source.is_dir():
        pytest.skip("models/stories260K is not in the test data folder")
    config, tensors = read_version0(source / "stories260K.bin")
    tokenizer = sentencepiece_tokenizer(source / "tok512.model")
    return write_folder(config, tensors, tokenizer, tmp_path_factory.mktemp("stories") / "260K")


@pytest.fixture(scope="session")
def prose7m(shared_data: Path) -> Path:
    """prose-7m: a Llama of 7.3 million parameters in bfloat16, with tokenizer."""
    folder = shared_data / "models" / "prose-7m"
    if not folder.is_dir():
        pytest.skip("models/prose-7m is not in the test data folder")
    return folder
