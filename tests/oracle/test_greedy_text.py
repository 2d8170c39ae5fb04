"""Greedy text of trained models: the C++ decoder goes where transformers goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qh_kernels import isa
from qh_runtime.checkpoints.config import read_config
from qh_runtime.tokenizers.from_hf import load_tokenizer
from tests.support.llama2c import encode_greedy, read_pieces, read_version2, sentencepiece_tokenizer
from tests.support.native_model import NativeModel
from tests.support.tiny_checkpoint import load_oracle, oracle_logits
from tests.support.tolerance import assert_within

N_TOKENS = 64
BUILT_IN = Path(__file__).resolve().parents[2] / "assets" / "models"


@pytest.fixture(params=isa.available())
def isa_name(request: pytest.FixtureRequest) -> str:
    """Each instruction set that runs here."""
    return str(request.param)


def _greedy(model: Any, prompt: list[int], n_tokens: int) -> tuple[list[int], NDArray[np.float32]]:
    """(ids, logits (n_tokens, vocab_size)) of transformers, from its own KV cache."""
    rows: list[NDArray[np.float32]] = []
    ids: list[int] = []
    past, step = None, torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(n_tokens):
            out = model(step, past_key_values=past, use_cache=True)
            past = out.past_key_values
            rows.append(out.logits[0, -1].float().numpy())
            ids.append(int(rows[-1].argmax()))
            step = torch.tensor([[ids[-1]]])
    return ids, np.stack(rows)


def _native_greedy(model: NativeModel, prompt: list[int], **options: Any) -> list[int]:
    ids: list[int] = []
    with model.decoder(**options) as decoder:
        decoder.prefill(prompt)
        while True:
            ids.append(int(decoder.logits().argmax()))
            if len(ids) == N_TOKENS:
                return ids
            decoder.prefill([ids[-1]])


def _assert_same_text(
    found: list[int], expected: list[int], logits: NDArray[np.float32], bound: float
) -> None:
    """The ids are equal up to a step whose two likeliest tokens are closer than the bound."""
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if ours != theirs:
            second, first = np.sort(logits[step])[-2:]
            assert first - second < bound, (
                f"step {step}: token {ours}, transformers has {theirs}; its two likeliest differ "
                f"by {first - second:.6f}, bound {bound}"
            )
            print(f"the text of transformers ends at step {step}: a margin of {first - second:.2e}")
            return


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["stories260k", "prose7m"])
def test_text_of_trained_models(name: str, isa_name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    prompt = load_tokenizer(folder).encode_raw("Once upon a time, there was a little")
    oracle = load_oracle(folder)
    expected, logits = _greedy(oracle, prompt, N_TOKENS)
    model = NativeModel.from_folder(folder)
    whole = oracle_logits(oracle, [*prompt, *expected[:-1]])
    with model.decoder(exact=True, isa=isa_name) as decoder:
        found = decoder.forward([*prompt, *expected[:-1]])
    assert_within(found, whole, 1e-3, relative=True, label=f"{name} {isa_name}")
    exact = _native_greedy(model, prompt, exact=True, isa=isa_name)
    _assert_same_text(exact, expected, logits, bound=1e-3)
    # The default cache holds halves: a relative 2^-11 of the values.
    usual = _native_greedy(model, prompt, isa=isa_name)
    _assert_same_text(usual, expected, logits, bound=5e-2)


@pytest.mark.shared_data
def test_known_text_of_stories260k(stories260k: Path) -> None:
    tokenizer = load_tokenizer(stories260k)
    prompt = tokenizer.encode_raw("Once upon a time, there was a little")
    ids = _native_greedy(NativeModel.from_folder(stories260k), prompt)
    text = tokenizer.decode(ids, continuation=True).strip()
    assert text.startswith(
        "girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball."
    )


@pytest.mark.shared_data
def test_known_text_of_stories3m_in_memory(shared_data: Path) -> None:
    """A checkpoint that is never written anywhere: converted, loaded and run in memory."""
    folder = shared_data / "models" / "stories3M"
    vocabulary = shared_data / "tokenizers" / "tinystories4096" / "tokenizer_4096.model"
    if not folder.is_dir() or not vocabulary.is_file():
        pytest.skip("models/stories3M is not in the test data folder")
    config, tensors = read_version2(folder / "stories3M-q80.bin")
    model = NativeModel.from_tensors(config, tensors)
    tokens = np.random.default_rng(3).integers(3, 4096, size=40).tolist()
    expected = model.reference_decoder().forward(tokens)
    with model.decoder(exact=True) as decoder:
        assert_within(decoder.forward(tokens), expected, 1e-4, relative=True)


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


def test_text_of_the_built_in_model(isa_name: str) -> None:
    folders = sorted(path.parent for path in BUILT_IN.glob("*/config.json"))
    if not folders:
        pytest.skip("assets/models holds no model")
    for folder in folders:
        assert read_config(folder).model["model_type"]
        prompt = load_tokenizer(folder).encode_raw("Once upon a time")
        expected, logits = _greedy(load_oracle(folder), prompt, N_TOKENS)
        found = _native_greedy(NativeModel.from_folder(folder), prompt, exact=True, isa=isa_name)
        # Ternary models: a code on a tie moves a logit by some hundredths.
        _assert_same_text(found, expected, logits, bound=0.1)
