"""Greedy text of trained models: the C++ decoder goes where transformers goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qh_kernels import isa
from qh_runtime.tokenizers.from_hf import load_tokenizer
from tests.support.greedy_text import assert_same_text, native_text, oracle_text
from tests.support.llama2c import (
    encode_greedy,
    read_pieces,
    read_version0,
    read_version2,
    sentencepiece_tokenizer,
)
from tests.support.native_model import NativeModel
from tests.support.tiny_checkpoint import load_oracle, memory_oracle, oracle_logits
from tests.support.tolerance import assert_within


@pytest.fixture(params=isa.available())
def isa_name(request: pytest.FixtureRequest) -> str:
    """Each instruction set that runs here."""
    return str(request.param)


def _check_text(
    name: str, isa_name: str, oracle: Any, model: NativeModel, prompt: list[int]
) -> None:
    """Logits along the text of transformers, then the text itself, exact and as usually run."""
    expected, logits = oracle_text(oracle, prompt)
    read = [*prompt, *expected[:-1]]
    whole = oracle_logits(oracle, read)
    label = f"{name} {isa_name}"
    with model.decoder(exact=True, isa=isa_name) as decoder:
        assert_within(decoder.forward(read), whole, 1e-3, relative=True, label=label)
    exact = native_text(model, prompt, exact=True, isa=isa_name)
    assert_same_text(exact, expected, logits, bound=1e-3, label=f"{label} exact")
    # The default cache holds halves: a relative 2^-11 of the values.
    usual = native_text(model, prompt, isa=isa_name)
    assert_same_text(usual, expected, logits, bound=5e-2, label=label)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["stories260k", "prose7m"])
def test_text_of_trained_models(name: str, isa_name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    prompt = load_tokenizer(folder).encode_raw("Once upon a time, there was a little")
    _check_text(name, isa_name, load_oracle(folder), NativeModel.from_folder(folder), prompt)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["stories3M", "babyllama-tok105"])
def test_text_of_trained_models_in_memory(name: str, isa_name: str, shared_data: Path) -> None:
    """Checkpoints that are never written anywhere: converted, loaded and run in memory."""
    folder = shared_data / "models" / name
    if not folder.is_dir():
        pytest.skip(f"models/{name} is not in the test data folder")
    if name == "stories3M":
        config, tensors = read_version2(folder / "stories3M-q80.bin")
    else:
        config, tensors = read_version0(folder / "model5000.bin")
    model = NativeModel.from_tensors(config, tensors)
    _check_text(name, isa_name, memory_oracle(config, tensors), model, [config["bos_token_id"]])


@pytest.mark.shared_data
def test_known_text_of_stories260k(stories260k: Path) -> None:
    tokenizer = load_tokenizer(stories260k)
    prompt = tokenizer.encode_raw("Once upon a time, there was a little")
    ids = native_text(NativeModel.from_folder(stories260k), prompt)
    text = tokenizer.decode(ids, continuation=True).strip()
    assert text.startswith(
        "girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball."
    )


@pytest.mark.shared_data
def test_converted_tokenizer_equals_the_algorithm_of_llama2c(shared_data: Path) -> None:
    path = shared_data / "models" / "stories260K" / "tok512.model"
    tokenizer, pieces = sentencepiece_tokenizer(path), read_pieces(path)
    for text in (
        "Once upon a time, there was a little girl named Zo\u00eb.",
        'He said: "No!"\n\nThen  two spaces, \u65e5\u672c and \U0001f44b.',
        "aaaaaaaaaaaaaaaaaaaaaaa bbb",
        "x",
    ):
        assert tokenizer.encode(text).ids == encode_greedy(text, pieces)
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
